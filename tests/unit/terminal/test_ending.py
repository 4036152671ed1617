"""Signals that tell the program to stop, also where a library makes errors of its own of what they raise."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from kanna.terminal.ending import Stops, Terminated, terminable, unmasked


def told(number: int) -> None:
    """Wait for a signal in the middle of code that turns any exception into one of its own."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(5)
    except KeyboardInterrupt:
        raise ValueError("no shape") from None


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """A shell starts what it runs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_masked_signal_is_a_signal(
    number: int, kind: type[KeyboardInterrupt], heard_interrupts: None
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stops = Stops()
    with pytest.raises(kind) as raised, terminable(stops), unmasked(stops):
        told(number)
    assert type(raised.value) is kind
    assert stops.signal == number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_errors_without_a_signal_stay_what_they_are() -> None:
    stops = Stops()
    with pytest.raises(ValueError, match="no shape"), terminable(stops), unmasked(stops):
        raise ValueError("no shape")


def test_whoever_has_a_use_for_a_signal_keeps_it() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with terminable(Stops()):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
