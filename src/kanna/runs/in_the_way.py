"""What an output must not be: something else than it replaces, or the model that is read."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kanna.checked import read_json
from kanna.checkpoint.outputs import refuse_replacing, run_record_path
from kanna.errors import InputError
from kanna.runs.places import work_directory


def refuse_existing(out: Path, replace: bool, refuse: Callable[[Path], None] = refuse_replacing) -> None:
    """Raise InputError where an output is in the way that is not to be replaced, or must not be.

    Args:
        refuse: Raises InputError for a directory that must not be replaced.
    """
    _refuse_record(run_record_path(out))
    if not os.path.lexists(out):
        return
    if not replace:
        raise InputError(f"{out} exists already", "choose another directory, or replace it with --force")
    refuse(out)


def refuse_input(out: Path, *sources: Path) -> None:
    """Raise InputError for an output that is a source, lies in one or holds one, however it is spelled."""
    for source in sources:
        places = {source, *(file.resolve() for file in _linked(source))}
        if _holds(source, out) or any(_holds(made, place) for made in _made(out) for place in places):
            raise InputError(
                f"{out} is, lies in or holds the model that is read ({source}), which is never touched",
                "choose another directory",
            )


def _made(out: Path) -> tuple[Path, Path]:
    return out, work_directory(out)


def _linked(source: Path) -> Iterator[Path]:
    """Links in a source, as the hub's cache is made of them: what they name is read too."""
    return (path for path in source.rglob("*") if path.is_symlink())


def _holds(directory: Path, path: Path) -> bool:
    """Whether a path is a directory or lies in it, told by what is on the disk and not by names."""
    resolved = path.resolve()
    return any(_same(directory, place) for place in (resolved, *resolved.parents))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return one.resolve() == other.resolve()


def _refuse_record(path: Path) -> None:
    """The record of a run replaces that of a run only."""
    if not os.path.lexists(path):
        return
    try:
        ours = "finished" in read_json(path)
    except InputError:
        ours = False
    if not ours:
        raise InputError(
            f"{path}, where the record of the run goes, is there and not from kanna", "choose another --out"
        )
