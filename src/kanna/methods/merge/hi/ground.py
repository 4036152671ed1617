"""What Hi-Merging stands on: whoever can score a state on the task of an expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kanna.methods.merge.hi.state import State
from kanna.methods.merge.tuning.samples import Sample, Scale


class Ground(Protocol):
    """Experts, each with a task, and the blocks of their base.

    Args:
        experts: Their names; the task of an expert has its number.
        blocks: Their names, in the order of the model.
        scales: Of each task, what the base scores and its expert gains.
    """

    @property
    def experts(self) -> tuple[str, ...]: ...

    @property
    def blocks(self) -> tuple[str, ...]: ...

    @property
    def scales(self) -> tuple[Scale, ...]: ...

    def score(self, state: State, task: int) -> Sample:
        """A state on the calibration rows of a task."""
        ...

    def deletions(self, state: State, task: int) -> list[Sample]:
        """For each block, the state with the base in it."""
        ...

    def additions(self, states: Sequence[State], task: int) -> list[list[Sample]]:
        """For each state and each block, the base with the state in that block."""
        ...


def mean_normalised(ground: Ground, state: State) -> float:
    """Mean over tasks of the normalised score of a state."""
    return sum(normalised(ground, state)) / len(ground.experts)


def normalised(ground: Ground, state: State) -> list[float]:
    """Of each task: 0 is the base, 1 its expert."""
    return [scale.normalised(ground.score(state, task).score) for task, scale in enumerate(ground.scales)]
