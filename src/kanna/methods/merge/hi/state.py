"""How much of each expert is in each block of a merge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Treatment:
    """What becomes of an expert's difference in a block.

    Args:
        kept: Share of its entries that stay, the largest ones.
        scale: By which they are multiplied.
    """

    kept: float
    scale: float

    @property
    def halved(self) -> Treatment:
        return Treatment(self.kept / 2, self.scale / 2)


GONE = Treatment(0.0, 0.0)
WHOLE = Treatment(1.0, 1.0)


@dataclass(frozen=True)
class State:
    """A merge.

    Args:
        rows: For each block, the treatment of each expert.
        share: By which all scales are multiplied: 1 for sums, 1 / experts for means.
    """

    rows: tuple[tuple[Treatment, ...], ...]
    share: float = 1.0

    @property
    def key(self) -> str:
        """The same for all states that are the same model."""
        scales = [[_effective(one, self.share) for one in row] for row in self.rows]
        return hashlib.sha256(json.dumps(scales).encode()).hexdigest()[:24]

    def replaced(self, block: int, row: Sequence[Treatment]) -> State:
        """With other treatments in one block."""
        return replace(self, rows=(*self.rows[:block], tuple(row), *self.rows[block + 1 :]))

    def without(self, block: int) -> State:
        """With the base in one block."""
        return self.replaced(block, (GONE,) * len(self.rows[block]))

    def alone(self, block: int) -> State:
        """With the base in all blocks but one."""
        return nothing(len(self.rows), len(self.rows[block]), self.share).replaced(block, self.rows[block])


def _effective(one: Treatment, share: float) -> tuple[float, float]:
    scale = one.scale * share
    return (one.kept, scale) if scale and one.kept else (0.0, 0.0)


def nothing(blocks: int, experts: int, share: float = 1.0) -> State:
    """The base."""
    return State(((GONE,) * experts,) * blocks, share)


def everywhere(treatments: Sequence[Treatment], blocks: int, share: float = 1.0) -> State:
    """The same in all blocks."""
    return State((tuple(treatments),) * blocks, share)


def only(expert: int, treatment: Treatment, experts: int, blocks: int) -> State:
    """One expert by itself, which is never averaged with others."""
    return everywhere([treatment if one == expert else GONE for one in range(experts)], blocks)
