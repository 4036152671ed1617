"""How a program is told to stop: Ctrl-C, and SIGTERM as batch systems and containers send it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whatever is done on Ctrl-C is done then too."""


def exit_code(stopped: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells have it."""
    return TERMINATED if isinstance(stopped, Terminated) else INTERRUPTED


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` until the block ends, unless somebody else has a use for it."""
    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated
