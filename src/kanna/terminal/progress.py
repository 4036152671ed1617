"""Progress with an estimate of the time left: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from kanna.heard import Lines, duration
from kanna.progress import Progress, parted

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
