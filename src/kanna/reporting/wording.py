"""Numbers as people read them, and cells that several sections share."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from kanna.reporting.blocks import At, Cell, Figure
from kanna.tasks.metrics.shown import change
from kanna.tasks.records import TEXT

C = TypeVar("C", bound=Cell)


def size(count: float) -> str:
    """Bytes in decimal units: 812 B, 4.2 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{round(count)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def some(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def seconds(value: float) -> str:
    """A duration: 10.2 ms, 3.1 s, 4:05 min, 3:20 h."""
    if value < 1:
        return f"{1e3 * value:,.1f} ms"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{int(value // 60)}:{int(value % 60):02d} min"
    return f"{int(value // 3600)}:{int(value % 3600 // 60):02d} h"


def moved(new: At, base: At, metric: str) -> Figure:
    """A score less another one."""
    return new.minus(base, change(metric, new.data - base.data))


def difference(decision: At, metric: str) -> Figure:
    """What a decision, or a test, found a score to change by."""
    return decision["difference"].figure(change(metric, decision.data["difference"]))


def interval(decision: At, metric: str) -> list[str | Figure]:
    """Of that difference, its two ends."""
    low, high = decision["interval"].items()
    return [low.figure(change(metric, low.data)), " to ", high.figure(change(metric, high.data))]


def units(kind: str) -> str:
    """What the rows of a score are: of text they are windows of it."""
    return "windows" if kind == TEXT else "rows"


def counted(at: At) -> str | Figure:
    """How many rows a score is of, in a column of rows."""
    return at.cell("rows", lambda count: f"{count:,} windows" if at.data["kind"] == TEXT else f"{count:,}")


def filled(columns: Sequence[str], rows: Sequence[Sequence[C]]) -> tuple[list[str], list[list[C]]]:
    """The table without the columns in which no row has anything."""
    kept = [index for index in range(len(columns)) if any(row[index] != "" for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def told_apart(names: Sequence[str], sources: Iterable[str]) -> list[str]:
    """The names, with the source of each where several are alike."""
    return [
        f"{name} ({source})" if names.count(name) > 1 else name
        for name, source in zip(names, sources, strict=True)
    ]
