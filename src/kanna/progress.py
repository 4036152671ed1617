"""How long work says how far it is."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

# Called with (stage, done, total).
Progress = Callable[[str, int, int], None]


def told(progress: Progress, stage: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items, each told of before it is worked on, and the end once the last one is done."""
    for done, item in enumerate(items):
        progress(stage, done, len(items))
        yield item
    progress(stage, len(items), len(items))
