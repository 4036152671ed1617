"""How long work says how far it is."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

# Called with (stage, done, total).
Progress = Callable[[str, int, int], None]
# Between the name of a stage and how it goes just now.
_BETWEEN = " | "


def going(stage: str, *how: str) -> str:
    """A stage, and how it goes just now: "factors | loss 2.310, 45.1 % kept". What is empty is left out."""
    told = ", ".join(part for part in how if part)
    return f"{stage}{_BETWEEN}{told}" if told else stage


def of(progress: Progress, whose: str) -> Progress:
    """The same, where every stage says whose it is: "base: app.jsonl"."""
    return lambda stage, done, total: progress(f"{whose}: {stage}", done, total)


def parted(stage: str) -> tuple[str, str]:
    """The name of a stage, and how it goes just now, which may be empty."""
    name, _, how = stage.partition(_BETWEEN)
    return name, how


def told(progress: Progress, stage: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items, each told of before it is worked on, and the end once the last one is done."""
    for done, item in enumerate(items):
        progress(stage, done, len(items))
        yield item
    progress(stage, len(items), len(items))
