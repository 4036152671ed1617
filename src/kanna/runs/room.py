"""Whether there is room for a run, in memory and on the disk; asked before anything is written."""

from pathlib import Path

import psutil

from kanna.errors import InputError
from kanna.runs.places import free_bytes
from kanna.runs.unfinished import FREE_SPACE


def check_memory(needed: int, remedy: str, what: str = "") -> None:
    """Refuse what does not fit into memory.

    Args:
        needed: Bytes.
        remedy: What makes it less.
        what: Needs them.

    Raises:
        InputError: Fewer are free.
    """
    available = psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"about {needed / 1e9:.2f} GB of memory are needed{what and f' for {what}'} and "
            f"{available / 1e9:.2f} GB are free",
            remedy,
        )


def check_space(needed: int, out: Path, what: str, there: int = 0, remedy: str = FREE_SPACE) -> None:
    """Refuse what does not fit on the disk of an output.

    Args:
        needed: Bytes.
        out: Whose disk it is.
        what: Takes them.
        there: Bytes that count as free, since they are taken by what is written again.
        remedy: What makes it less.

    Raises:
        InputError: Fewer are free.
    """
    free = free_bytes(out) + there
    if needed > free:
        raise InputError(
            f"about {needed / 1e9:.2f} GB of space are needed for {what}, and {free / 1e9:.2f} GB are free",
            remedy,
        )
