"""Which set of scales a directory uses: a journal, written whole, to which each change is appended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kanna.checkpoint.scale_records import JOURNAL, Entry, Journal, read_journal
from kanna.checkpoint.scale_sets import find, names
from kanna.checkpoint.set_names import FOLDER
from kanna.checkpoint.whole import write_json_whole
from kanna.errors import InputError


def active(base: Path) -> str | None:
    """The set in use; None for the model as it was quantised."""
    return read_journal(base).stack[-1]


def use(base: Path, name: str | None) -> None:
    """Note that a set is used from now on."""
    if name is not None:
        find(base, name)
    _append(base, Entry(verb="use", scales=name))


def back(base: Path, to: str | None = "") -> str | None:
    """Go back to what was used before, or to a set of that name; None is the model as it was quantised.

    Raises:
        InputError: There is nothing before.
    """
    journal, known = read_journal(base), {None, *names(base)}
    if to != "":
        if to is not None:
            find(base, to)
        target = to
    else:
        before: Sequence[str | None] = [one for one in journal.stack[:-1] if one in known]
        if not before:
            raise InputError(f"{base} is used as it was quantised: there is nothing to go back to")
        target = before[-1]
    _append(base, Entry(verb="rollback", scales=target))
    return target


def _append(base: Path, entry: Entry) -> None:
    journal = Journal(entries=(*read_journal(base).entries, entry))
    write_json_whole(base / FOLDER / JOURNAL, journal.model_dump(mode="json"))
