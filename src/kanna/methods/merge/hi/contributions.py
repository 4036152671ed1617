"""Second stage: what each block gives each task, in its expert and in the merge; where the merge gives less.

Of a model X with difference d, its score P on a task, and a block l: deletion impact alpha = P(X) - P(X
without d in l), addition impact beta = P(base with d in l) - P(base), contribution c = alpha + beta. The
conflict of a task in a block is gamma = c in its expert - c in the merge, over what the expert gains; Gamma
is the sum over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kanna.methods.merge.hi.ground import Ground
from kanna.methods.merge.hi.ranking import Ranked
from kanna.methods.merge.hi.state import State, Treatment, nothing, only
from kanna.methods.merge.tuning.samples import Sample
from kanna.progress import Progress

Rows = tuple[float, ...]


@dataclass(frozen=True)
class Impact:
    """Of one block on one task, row by row.

    Args:
        deletion: Score lost where the block becomes the base's.
        addition: Score gained where the block alone is put into the base.
    """

    deletion: Rows
    addition: Rows

    @property
    def alpha(self) -> float:
        return _mean(self.deletion)

    @property
    def beta(self) -> float:
        return _mean(self.addition)

    @property
    def rows(self) -> Rows:
        return tuple(a + b for a, b in zip(self.deletion, self.addition, strict=True))

    @property
    def contribution(self) -> float:
        return self.alpha + self.beta


@dataclass(frozen=True)
class Conflict(Ranked):
    """Of one block; what is lost of an expert is told by its task.

    Args:
        block: Its number.
        own: For each task, the impact in its expert.
        merged: For each task, the impact in the merge.
        gains: For each task, what its expert gains.
    """

    block: int
    own: tuple[Impact, ...]
    merged: tuple[Impact, ...]
    gains: tuple[float, ...]

    @property
    def place(self) -> int:
        return self.block

    @property
    def gamma(self) -> tuple[float, ...]:
        """Of each task, over what its expert gains."""
        return tuple(
            (one.contribution - other.contribution) / gain
            for one, other, gain in zip(self.own, self.merged, self.gains, strict=True)
        )

    @property
    def errors(self) -> tuple[float, ...]:
        """Standard errors of gamma, over rows."""
        return tuple(
            _error([a - b for a, b in zip(one.rows, other.rows, strict=True)]) / gain
            for one, other, gain in zip(self.own, self.merged, self.gains, strict=True)
        )

    @property
    def strongest(self) -> int:
        """The expert that gives its own task most here, of what it gains in all."""
        shares = [one.contribution / gain for one, gain in zip(self.own, self.gains, strict=True)]
        return max(range(len(shares)), key=lambda index: shares[index])


def conflicts(
    ground: Ground, experts: Sequence[Treatment], merged: State, progress: Progress
) -> list[Conflict]:
    """Of every block, in the order of the model.

    Args:
        experts: How each of them is treated by itself.
    """
    count = len(ground.experts)
    found: list[tuple[list[Impact], list[Impact]]] = []
    for task in range(count):
        progress("contributions", task, count)
        own = only(task, experts[task], count, len(ground.blocks))
        found.append(_impacts(ground, own, merged, task))
    progress("contributions", count, count)
    gains = tuple(scale.gain for scale in ground.scales)
    return [
        Conflict(block, tuple(own[block] for own, _ in found), tuple(of[block] for _, of in found), gains)
        for block in range(len(ground.blocks))
    ]


def _impacts(ground: Ground, own: State, merged: State, task: int) -> tuple[list[Impact], list[Impact]]:
    """Of all blocks on one task, in its expert and in the merge."""
    base = ground.score(nothing(len(ground.blocks), len(ground.experts)), task)
    added = ground.additions([own, merged], task)
    first, second = (
        [
            Impact(_minus(ground.score(state, task), gone), _minus(there, base))
            for gone, there in zip(ground.deletions(state, task), additions, strict=True)
        ]
        for state, additions in zip((own, merged), added, strict=True)
    )
    return first, second


def _minus(one: Sample, other: Sample) -> Rows:
    return tuple(a - b for a, b in zip(one.values, other.values, strict=True))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 where one value tells nothing of it."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
