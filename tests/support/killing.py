"""Runs that kill themselves: in forked children, so that each starts from the same state."""

import hashlib
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

_FINAL = ("replace", "rename")
_CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def in_child(action: Callable[[], object], threads: int | None = 1) -> int:
    """Exit status of `action` in a process of its own; negative where a signal ended it; see `start`."""
    return status_of(start(action, threads))


def start(action: Callable[[], object], threads: int | None = 1) -> int:
    """Number of a new process that carries `action` out; what it returns, if a number, is its exit status.

    Args:
        threads: To compute with. OpenMP's other threads do not live on in a child, and whoever waits for them
            waits for ever: only a program that has computed nothing yet may leave it as it is (None).
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            done = action()
            status = done if isinstance(done, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    """Exit status of a process that ended; negative where a signal ended it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def names_taken(action: Callable[[], object], log: Path) -> int:
    """How often a file or directory takes its final name in `action`, carried out in a child."""

    def counted() -> None:
        count = 0

        def wrap(name: str) -> None:
            original = getattr(pathlib.Path, name)

            def wrapped(self: Path, target: Path) -> Path:
                nonlocal count
                count += 1
                result: Path = original(self, target)
                return result

            setattr(pathlib.Path, name, wrapped)

        for name in _FINAL:
            wrap(name)
        action()
        log.write_text(str(count))

    assert in_child(counted) == 0
    return int(log.read_text())


def die_at(point: int, late: bool) -> None:
    """In this process, be killed right before (or after) the `point`-th file takes its final name."""
    count = 0

    def wrap(name: str) -> None:
        original = getattr(pathlib.Path, name)

        def wrapped(self: Path, target: Path) -> Path:
            nonlocal count
            count += 1
            if count == point and not late:
                os.kill(os.getpid(), signal.SIGKILL)
            result: Path = original(self, target)
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(pathlib.Path, name, wrapped)

    for name in _FINAL:
        wrap(name)


def die_at_change(place: Path, point: int) -> None:
    """In this process, be killed right before the `point`-th change of a file or directory below `place`."""
    count = 0

    def hook(event: str, given: tuple[object, ...]) -> None:
        nonlocal count
        if _changes(event, given, str(place)):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def changes_below(place: Path, action: Callable[[], object], log: Path) -> int:
    """How often `action`, carried out in a child, changes a file or directory below a place."""

    def counted() -> None:
        count = 0

        def hook(event: str, given: tuple[object, ...]) -> None:
            nonlocal count
            count += _changes(event, given, str(place))

        sys.addaudithook(hook)
        action()
        total = count
        log.write_text(str(total))

    assert in_child(counted) == 0
    return int(log.read_text())


def _changes(event: str, given: tuple[object, ...], place: str) -> bool:
    if event == "open":
        flags = given[2]
        writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        return writes and str(given[0]).startswith(place)
    return event in _CHANGES and any(str(one).startswith(place) for one in given)


def killed_and_resumed(
    run: Callable[[bool], object], point: int, late: bool, threads: int | None = 1
) -> tuple[int, int]:
    """Exit status of a run killed at a point, and of the one that resumes it.

    Args:
        run: Given whether it resumes.
        threads: As in `start`.
    """

    def killed() -> None:
        die_at(point, late)
        run(False)

    status = in_child(killed, threads)
    return status, in_child(lambda: run(True), threads)


def hashes(directory: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
