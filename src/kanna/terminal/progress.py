"""Progress with an estimate of the time left: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from kanna.progress import Progress, parted

SECONDS_BETWEEN_LINES = 5.0
_BAR = 10


@contextmanager
def progress_on(stream: TextIO, quiet: bool = False) -> Iterator[Progress]:
    """A function to call with (stage, done, total), which reports on `stream` until the block ends."""
    if quiet:
        yield lambda *_: None
    elif stream.isatty():
        with _bars(stream) as report:
            yield report
    else:
        yield Lines(stream)


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


@contextmanager
def _bars(stream: TextIO) -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    whole, rest = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)

    class Times(progress.ProgressColumn):
        """What it took, and what it will take."""

        def render(self, task: progress.Task) -> Text:
            if task.finished:
                return Text(f"took {duration(task.finished_time or 0.0)}")
            left = "" if task.time_remaining is None else f", {duration(task.time_remaining)} left"
            return Text(f"{duration(task.elapsed or 0.0)} so far{left}")

    columns = (
        progress.TextColumn("{task.description:<12}", table_column=whole),
        progress.BarColumn(_BAR),
        progress.MofNCompleteColumn(table_column=whole),
        Times(whole),
        progress.TextColumn("{task.fields[how]}", table_column=rest),
    )
    with progress.Progress(*columns, console=Console(file=stream), expand=True) as bars:
        tasks: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            name, how = parted(stage)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, how="")
            bars.update(tasks[name], completed=done, total=total, how=how)  # type: ignore[arg-type]

        yield report
