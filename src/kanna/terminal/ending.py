"""How a program is told to stop: Ctrl-C, and SIGTERM as batch systems and containers send it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whatever is done on Ctrl-C is done then too."""


def exit_code(stopped: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells have it."""
    return TERMINATED if isinstance(stopped, Terminated) else INTERRUPTED


@dataclass
class Stops:
    """Which signal has told the program to stop, if one has."""

    signal: int | None = None

    def error(self) -> KeyboardInterrupt:
        """What is to be raised for it."""
        return Terminated() if self.signal == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def terminable(stops: Stops) -> Iterator[None]:
    """SIGTERM raises `Terminated` until the block ends, unless somebody else has a use for it.

    Args:
        stops: Is told, of SIGTERM and of Ctrl-C.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        stops.signal = number
        raise stops.error()

    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    alone = threading.current_thread() is threading.main_thread()
    ours = {
        number: before for number, before in usual.items() if alone and signal.getsignal(number) is before
    }
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, before in ours.items():
            signal.signal(number, before)


@contextmanager
def unmasked(stops: Stops) -> Iterator[None]:
    """What a signal raised inside a library may come out as an error of that library: it is the signal's."""
    try:
        yield
    except Exception as error:
        if stops.signal is None:
            raise
        raise stops.error() from error
