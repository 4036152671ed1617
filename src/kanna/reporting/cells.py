"""Cells that several sections share: changes, intervals, tables without empty columns, titles."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from kanna.reporting.blocks import At, Cell, Figure
from kanna.reporting.wording import change

C = TypeVar("C", bound=Cell)


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
