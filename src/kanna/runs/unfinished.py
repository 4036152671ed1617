"""The directory in which an unfinished run keeps its pieces, so that it can be continued after a kill."""

import contextlib
import errno
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from kanna.checked import read_json
from kanna.checkpoint.whole import write_json_whole
from kanna.errors import InputError
from kanna.runs.places import RUN, work_directory

FREE_SPACE = "free some space, or write to another disk with --out"
_LOCK = "lock"


@contextlib.contextmanager
def unfinished_work(
    out: Path,
    key: str,
    resume: bool,
    force: bool,
    survives: Collection[str] | None = None,
    worth: str | None = None,
) -> Iterator[Path]:
    """The directory of unfinished work for `out`, held by this process alone.

    Args:
        key: Of all that the work depends on; a run can be resumed under an equal one only.
        resume: Go on with what is there.
        force: Begin anew where something is there.
        survives: Names of files that a resumed run goes on with; None for all.
        worth: A file for whose sake the directory outlives an InputError; None for none.

    Raises:
        InputError: Nothing to resume, or something in the way, another key, another process, no space.
    """
    directory = work_directory(out)
    _check(directory, out, key, resume, force)
    missing = [parent for parent in directory.parents if not parent.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made: {error.strerror}", "choose another --out") from error
    try:
        with FileLock(directory / _LOCK, timeout=0):
            if not resume or survives is not None:
                _clean(directory, (_LOCK, RUN, *(survives or ())) if resume else (_LOCK,))
            write_json_whole(directory / RUN, {"key": key})
            yield directory
    except Timeout:
        raise InputError(f"another run is writing {out}", "wait for it, or choose another --out") from None
    except (InputError, OSError, SafetensorError) as error:
        full = _no_space_left(error)
        if not (full or isinstance(error, InputError)):
            raise
        if worth is None or not (directory / worth).is_file():
            _remove(directory, missing)
        if full:
            raise InputError(f"no space is left for unfinished work: {error}", FREE_SPACE) from error
        raise


def refuse_existing(out: Path, replace: bool) -> None:
    """Raise InputError where an output is in the way."""
    if (out.exists() or out.is_symlink()) and not replace:
        raise InputError(f"{out} exists already", "choose another directory, or replace it with --force")


def refuse_input(out: Path, source: Path) -> None:
    """Raise InputError for an output that is the source, lies in it or holds it, through links or not."""
    there, here = out.resolve(), source.resolve()
    if there == here or here in there.parents or there in here.parents:
        raise InputError(
            f"{out} is, lies in or holds the model that is read ({source}), which is never touched",
            "choose another directory",
        )


def replaces(out: Path, force: bool, resume: bool) -> bool:
    """Whether an `out` that exists may be replaced: asked for, or written by the very run that is resumed.

    A run that was killed after `out` had its name, while it cleaned up, left its record; `unfinished_work`
    makes sure that it is the same run.
    """
    return force or (resume and (work_directory(out) / RUN).is_file())


def _check(directory: Path, out: Path, key: str, resume: bool, force: bool) -> None:
    record = directory / RUN
    if record.is_file() and not resume and not force:
        raise InputError(
            f"{directory} holds an unfinished run for {out.name}",
            "continue it with --resume, or start over with --force",
        )
    if record.is_file() and resume and read_json(record).get("key") != key:
        raise InputError(
            f"{directory} was begun with other settings, model, text, task, versions, threads or device",
            "repeat the command that began it with --resume, or start over with --force",
        )
    if resume and not record.is_file():
        raise InputError(f"there is no unfinished run for {out}", "leave out --resume")


def _clean(directory: Path, kept: Collection[str]) -> None:
    """Remove what a run that was killed left: files, and folders."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()


def _remove(directory: Path, made: Collection[Path]) -> None:
    """The directory, and the parents that were made for it."""
    shutil.rmtree(directory, ignore_errors=True)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _no_space_left(error: Exception) -> bool:
    """safetensors hands the system's error on as text."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError) and f"os error {errno.ENOSPC}" in str(error)
