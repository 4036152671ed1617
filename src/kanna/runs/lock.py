"""A file that one process holds, also where the one that holds it may remove it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kanna.errors import InputError

# Others may remove the folder so often while it is looked up; more often than that, something else is wrong.
_TRIES = 1000


class Held(InputError):
    """Another process has it."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file until the block ends; folders are made, and made again if whoever had it removes them.

    Raises:
        Held: Another process holds it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows, where nobody can remove a file that is open
        fcntl = None  # type: ignore[assignment]
    with _by_handle(path) if fcntl is None else _by_descriptor(path, fcntl):
        yield


@contextlib.contextmanager
def _by_handle(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise Held(f"{path} is held by another process", "wait for it") from None


@contextlib.contextmanager
def _by_descriptor(path: Path, fcntl: Any) -> Iterator[None]:
    """A lock on a file that was removed while it was opened counts for nothing: it is opened again."""
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(path, descriptor):
                break
        except BlockingIOError:
            os.close(descriptor)
            raise Held(f"{path} is held by another process", "wait for it") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return _open(path)
    return _open(path)


def _open(path: Path) -> int:
    """Fails where the folder is removed in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _names(path: Path, descriptor: int) -> bool:
    """Whether the path still is that of the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
