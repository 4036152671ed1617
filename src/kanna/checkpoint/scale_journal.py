"""Which set of scales a directory uses: a journal, written whole, to which each change is appended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from kanna.checked import read_json, validated
from kanna.checkpoint.lineage import check_format_version
from kanna.checkpoint.scale_sets import FORMAT_VERSION, find, names
from kanna.checkpoint.set_names import FOLDER
from kanna.checkpoint.whole import write_json_whole
from kanna.errors import InputError

JOURNAL = "active.json"
_REMEDY = "remove it to use the model as it was quantised"


class Entry(BaseModel):
    """One change; `scales` is None for the model as it was quantised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verb: Literal["use", "rollback"]
    scales: str | None


class Journal(BaseModel):
    """All that active.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    entries: tuple[Entry, ...] = ()

    @property
    def stack(self) -> list[str | None]:
        """What was used, and what it took the place of; the last one is in use. Going back takes away."""
        held: list[str | None] = [None]
        for entry in self.entries:
            if entry.verb == "use":
                held.append(entry.scales)
            elif entry.scales in held:
                del held[len(held) - held[::-1].index(entry.scales) :]
            else:
                held.append(entry.scales)
        return held


def read(base: Path) -> Journal:
    """The journal of a model's directory; empty where there is none.

    Raises:
        InputError: It is damaged, or of a newer format.
    """
    path = base / FOLDER / JOURNAL
    if not path.is_file():
        return Journal()
    data = read_json(path)
    check_format_version(data.get("format_version"), path, FORMAT_VERSION, _REMEDY)
    return validated(Journal, data, f"{path} is damaged", _REMEDY)


def active(base: Path) -> str | None:
    """The set in use; None for the model as it was quantised."""
    return read(base).stack[-1]


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
    journal, known = read(base), {None, *names(base)}
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
    journal = Journal(entries=(*read(base).entries, entry))
    write_json_whole(base / FOLDER / JOURNAL, journal.model_dump(mode="json"))
