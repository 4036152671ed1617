"""The directory in which an unfinished run keeps its pieces, so that it can be continued after a kill."""

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError

from kanna.checked import read_json
from kanna.checkpoint.outputs import InTheWay, identity, refuse_replacing
from kanna.checkpoint.whole import write_json_whole
from kanna.checkpoint.writer import put_back
from kanna.errors import InputError
from kanna.runs.begun import differing
from kanna.runs.in_the_way import refuse_existing
from kanna.runs.lock import Held, locked
from kanna.runs.places import RUN, work_directory

FREE_SPACE = "free some space, or write to another disk with --out"
_LOCK, _WRITTEN = "lock", "written"
# What tells one output from another: of a model its lineage, of a set of scales its record.
_RECORDS = ("kanna.json", "scales.json")
# In the names of files and folders that are not whole yet.
_PARTIAL = ".partial"
_KEPT = "; what is finished is kept: repeat the command with --resume, or start over with --force"


@contextlib.contextmanager
def sole_writer(
    out: Path, force: bool = False, refuse: Callable[[Path], None] = refuse_replacing
) -> Iterator[None]:
    """For work on `out` that is not resumed: nobody else writes it until the block ends.

    Args:
        force: Replace `out`, and forget an unfinished run for it once this work is done.
        refuse: Raises InputError for an `out` that must not be replaced.

    Raises:
        InputError: Another run is writing `out`, is unfinished, or has written it.
    """
    with _held(out) as directory:
        if not force:
            _refuse_record_of_run(directory, out)
        refuse_existing(out, force, refuse)
        yield
        _clean(directory, (_LOCK,))


@contextlib.contextmanager
def unfinished_work(
    out: Path,
    key: str,
    resume: bool,
    force: bool,
    survives: Collection[str] | None = None,
    worth: str | None = None,
    parts: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Path]:
    """The directory of unfinished work for `out`, held by this process alone.

    Args:
        key: Of all that the work depends on; a run can be resumed under an equal one only.
        resume: Go on with what is there.
        force: Begin anew where something is there.
        survives: Names of files that a resumed run goes on with; None for all.
        worth: The file for whose sake the directory outlives an InputError; None for what steps finished.
        parts: What the key is of, name by name, to say what differs.

    Raises:
        InputError: Nothing to resume, or something in the way, another key, another process, no space.
    """
    with _held(out) as directory:
        _check(directory, out, key, resume, force, parts)
        refuse_existing(out, replaces(out, force, resume))
        if not resume or survives is not None:
            _clean(directory, (_LOCK, RUN, _WRITTEN, *(survives or ())) if resume else (_LOCK,))
        with _dropped_on_refusal(directory, worth):
            write_json_whole(directory / RUN, {"key": key, "parts": dict(parts)})
            yield directory


def about_to_name(directory: Path, model: Path) -> None:
    """Note in a folder of unfinished work which model is going to have the name of the output."""
    (directory / _WRITTEN).write_text(_digest(model), encoding="ascii")


def clear(directory: Path) -> None:
    """Remove unfinished work that is no longer needed; the lock, which is held, goes last.

    A kill in between leaves a run that `--resume` ends, or none: the note of the output outlives the record.
    """
    _clean(directory, (_LOCK, RUN, _WRITTEN))
    (directory / RUN).unlink(missing_ok=True)
    _clean(directory, (_LOCK,))


def replaces(out: Path, force: bool, resume: bool) -> bool:
    """Whether an `out` that exists may be replaced: asked for, or written by the very run that is resumed.

    A run that was killed after `out` had its name, while it cleaned up, left its note of what it named.
    """
    if force or not resume:
        return force
    return _named(work_directory(out), out)


def _named(directory: Path, out: Path) -> bool:
    """Whether `out` is what the run of this folder was going to give the name to."""
    try:
        return (directory / _WRITTEN).read_text(encoding="ascii") == _digest(out)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(model: Path) -> str:
    record = next((name for name in _RECORDS if (model / name).is_file()), _RECORDS[0])
    return hashlib.sha256((model / record).read_bytes()).hexdigest()


@contextlib.contextmanager
def _held(out: Path) -> Generator[Path]:
    """The folder of unfinished work, locked; left empty, it goes, with all folders that were made for it."""
    directory = work_directory(out)
    missing = [parent for parent in directory.parents if not parent.exists()]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(directory / _LOCK))
        except Held:
            raise InputError(
                f"another run is writing {out}", "wait for it, or choose another --out"
            ) from None
        except OSError as error:
            _remove_made(missing)
            raise InputError(
                f"{directory} cannot be made: {error.strerror}", "choose another --out"
            ) from error
        ours = identity(directory / _LOCK)
        put_back(out)
        try:
            yield directory
        finally:
            _remove_empty(directory, ours)
            if not directory.is_dir():
                _remove_made(missing)


@contextlib.contextmanager
def _dropped_on_refusal(directory: Path, worth: str | None) -> Generator[None]:
    """After a refusal, what is finished stays for a repeated command, and a folder without any of it goes."""
    try:
        yield
    except InTheWay as error:
        raise InTheWay(error.problem, "move that away, then repeat the command with --resume") from error
    except (InputError, OSError, SafetensorError) as error:
        refused = _as_refusal(error)
        if refused is None:
            raise
        if _has_finished(directory, worth):
            raise InputError(refused.problem, f"{refused.remedy}{_KEPT}".removeprefix("; ")) from error
        clear(directory)
        if refused is error:
            raise
        raise refused from error


def _as_refusal(error: Exception) -> InputError | None:
    """What the user can mend; None for errors of other kinds."""
    if isinstance(error, InputError):
        return error
    if _no_space_left(error):
        return InputError(f"no space is left for unfinished work: {error}", FREE_SPACE)
    return None


def _has_finished(directory: Path, worth: str | None) -> bool:
    """Whether there is something to go on with: that one file or, without one, a piece of any step."""
    if worth is not None:
        return (directory / worth).is_file()
    folders = (path for path in directory.iterdir() if path.is_dir())
    pieces = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return any(_PARTIAL not in path.relative_to(directory).as_posix() for path in pieces)


def _check(directory: Path, out: Path, key: str, resume: bool, force: bool, parts: Mapping[str, str]) -> None:
    record = directory / RUN
    if not resume and not force:
        _refuse_record_of_run(directory, out)
    if record.is_file() and resume and _key(record) != key:
        then = read_json(record).get("parts")
        named = differing(then, parts) if isinstance(then, dict) and parts else ""
        what = (
            f"other settings: {named}"
            if named
            else ("other settings, model, text, task, versions, threads or device")
        )
        raise InputError(
            f"{directory} was begun with {what}",
            "repeat the command that began it with --resume, or start over with --force",
        )
    if resume and not record.is_file():
        raise InputError(f"there is no unfinished run for {out}", "leave out --resume")


def _key(record: Path) -> object:
    try:
        return read_json(record).get("key")
    except InputError as error:
        raise InputError(error.problem, "start over with --force") from error


def _refuse_record_of_run(directory: Path, out: Path) -> None:
    """Raise InputError for an unfinished run; one that was killed after `out` had its name has only to go."""
    if _named(directory, out):
        clear(directory)
    if (directory / RUN).is_file():
        raise InputError(
            f"{directory} holds an unfinished run for {out.name}",
            "continue it with --resume, or start over with --force",
        )


def _clean(directory: Path, kept: Collection[str]) -> None:
    """Remove what a run that was killed left: files, and folders."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()


def _remove_empty(directory: Path, lock: tuple[int, int] | None) -> None:
    """The folder goes where nothing but the lock is left in it, which must not be that of another run.

    Whoever comes in between makes a folder of their own, or puts a lock into this one, which then stays.
    """
    with contextlib.suppress(OSError):
        if identity(directory / _LOCK) == lock and [path.name for path in directory.iterdir()] == [_LOCK]:
            (directory / _LOCK).unlink()
            directory.rmdir()


def _remove_made(folders: Collection[Path]) -> None:
    """Those that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _no_space_left(error: Exception) -> bool:
    """safetensors hands the system's error on as text."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError) and f"os error {errno.ENOSPC}" in str(error)
