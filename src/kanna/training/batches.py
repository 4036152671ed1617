"""Which examples go into which step: a function of the seed and the step's number alone.

So a run that was killed goes on with the same batches without remembering where any iterator stood.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import torch

# Rows are sorted by length within so many batches, so that little is padded and the order stays random.
_SORTED_TOGETHER = 32


def permutation(count: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 to count - 1 in the order of an epoch; epochs are successive draws of one generator."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch):
        torch.randperm(count, generator=generator)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def order_of(count: int, steps: int, seed: int) -> list[int]:
    """Numbers of `steps` steps that take one each: permutations, one after the other."""
    epochs = -(-steps // count)
    return [number for epoch in range(epochs) for number in permutation(count, seed, epoch)][:steps]


@dataclass(frozen=True)
class Batches:
    """Batches of examples, epoch after epoch.

    Every example is in one batch of each epoch; batches of an epoch differ by one row at most.

    Args:
        sizes: Tokens of each example.
        rows: Examples a step, at most.
        seed: Of the order.
    """

    sizes: tuple[int, ...]
    rows: int
    seed: int = 0

    @property
    def per_epoch(self) -> int:
        """Steps until every example was seen once."""
        return -(-len(self.sizes) // self.rows)

    def at(self, step: int) -> tuple[int, ...]:
        """Numbers of the examples of a step, from 0."""
        epoch, place = divmod(step, self.per_epoch)
        return _epoch(self.sizes, self.rows, self.seed, epoch)[place]


@lru_cache(maxsize=4)
def _epoch(sizes: tuple[int, ...], rows: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
    """The batches of an epoch, in its order."""
    order = permutation(len(sizes), seed, epoch)
    count = -(-len(sizes) // rows)
    together = _SORTED_TOGETHER * rows
    parts = [order[start : start + together] for start in range(0, len(order), together)]
    by_length = [number for part in parts for number in sorted(part, key=lambda i: sizes[i])]
    bounds = [len(sizes) * i // count for i in range(count + 1)]
    made = [tuple(by_length[a:b]) for a, b in pairwise(bounds)]
    # Batches of like length must not come in the order of their lengths.
    return tuple(made[i] for i in permutation(count, seed + 1, epoch))


@dataclass(frozen=True)
class Mixed:
    """Batches of the task with a share of replayed text in each.

    Args:
        task: Of the rows that are learnt.
        replay: Of text that must not be forgotten; None for none.
    """

    task: Batches
    replay: Batches | None = field(default=None)

    def at(self, step: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers of the examples of the task, and of the replayed text."""
        return self.task.at(step), () if self.replay is None else self.replay.at(step)


def mixed(task: Sequence[int], replay: Sequence[int], rows: int, share: float, seed: int) -> Mixed:
    """Batches of `rows` examples, of which about `share` are replayed text, at least one where there is any.

    Args:
        task: Tokens of each example of the task.
        replay: Tokens of each example of text; empty for none.
    """
    if not replay:
        return Mixed(Batches(tuple(task), rows, seed))
    again = min(rows - 1, max(1, round(share * rows))) if rows > 1 else 1
    return Mixed(Batches(tuple(task), max(1, rows - again), seed), Batches(tuple(replay), again, seed))
