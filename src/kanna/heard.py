"""Progress with an estimate of the time left: lines now and then, or bars in a notebook."""

import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any, TextIO

from kanna.errors import InputError
from kanna.progress import Progress, parted

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_BARS = 5.0, 0.2
# What functions take for progress: a function to call, or whether to show it.
Listener = Progress | bool


def heard(asked: Listener) -> Progress:
    """What is to be called with (stage, done, total).

    Args:
        asked: A function; True shows bars in a notebook and lines on stderr elsewhere; False shows nothing.

    Raises:
        InputError: None of these.
    """
    if callable(asked):
        return asked
    if not isinstance(asked, bool):
        raise InputError(
            f"progress is a function of (stage, done, total), or True, found {type(asked).__name__}",
            "write progress=True",
        )
    if not asked:
        return lambda *_: None
    display = _notebook()
    return Lines(sys.stderr) if display is None else Bars(display)


class Lines:
    """At most one line every few seconds, and one when the first stage begins.

    Args:
        stream: Where lines go.
        clock: Seconds, from anywhere.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._stage, self._began, self._first = "", 0.0, 0
        self._printed: float | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now, (name, how) = self._clock(), parted(stage)
        if name != self._stage:
            self._stage, self._began, self._first = name, now, done
        if self._printed is not None and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        left = remaining(now - self._began, done - self._first, total - done)
        tail = "" if left is None else f", about {duration(left)} left in this stage"
        told = f", {how}" if how else ""
        print(f"{name} {done}/{total}{told}{tail}", file=self._stream, flush=True)


class Bars:
    """One bar a stage, drawn below the cell of a notebook; both of its times are named.

    Args:
        display: Draws HTML, and again in the same place.
        clock: Seconds, from anywhere.
    """

    def __init__(self, display: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._display, self._clock = display, clock
        self._stages: dict[str, tuple[float, int, str]] = {}  # name -> when and where it began, its row
        self._drawn: float | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now, (name, how) = self._clock(), parted(stage)
        is_new = name not in self._stages
        began, first, _ = self._stages.get(name, (now, done, ""))
        left = remaining(now - began, done - first, total - done)
        times = f"{duration(now - began)} so far" + ("" if left is None else f", {duration(left)} left")
        if done >= total:
            times = f"took {duration(now - began)}"
        told = f"{done}/{total}, {times}" + (f", {how}" if how else "")
        bar = f'<progress value="{done}" max="{max(total, 1)}"></progress>'
        self._stages[name] = (
            began,
            first,
            f"<tr><td>{escape(name)}</td><td>{bar}</td><td>{escape(told)}</td></tr>",
        )
        if (
            not is_new
            and done < total
            and self._drawn is not None
            and now - self._drawn < SECONDS_BETWEEN_BARS
        ):
            return
        self._drawn = now
        self._display(f"<table>{''.join(row for _, _, row in self._stages.values())}</table>")


def remaining(elapsed: float, done: int, left: int) -> float | None:
    """Seconds that `left` units will take if they go like the `done` ones; None where nothing tells."""
    return None if done <= 0 or left <= 0 else elapsed / done * left


def duration(seconds: float) -> str:
    """12 s, 3:05 min or 1:02:03 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def _notebook() -> Callable[[str], None] | None:
    """What draws HTML below the cell of a notebook that is running; None elsewhere."""
    interactive: Any = sys.modules.get("IPython")
    shell = None if interactive is None else interactive.get_ipython()
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    shown: Any = interactive.display
    handle: Any = None

    def draw(html: str) -> None:
        nonlocal handle
        if handle is None:
            handle = shown.display(shown.HTML(html), display_id=True)
        else:
            handle.update(shown.HTML(html))

    return draw
