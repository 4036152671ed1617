"""Tasks in closed form: what Hi-Merging must find on them can be computed by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kanna.methods.merge.hi.state import State
from kanna.methods.merge.tuning.samples import Sample, Scale

Vector = list[float]


@dataclass
class Planted:
    """A block is one number x, which is 0 in the base.

    A row of task m scores -sum over blocks l of bends[m][l] (x_l - tops[m][l])^2 + ties[m] sum of
    x_l x_(l+1), plus noise of its own in one block. An expert's difference in a block is `moves[m][l]`,
    times the square root of the share that is kept.
    """

    moves: list[Vector]
    tops: list[Vector]
    bends: list[Vector]
    ties: Vector
    noise: Vector = field(default_factory=lambda: [-0.1, 0.0, 0.4])
    asked: list[str] = field(default_factory=list)

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple("abcdefgh"[: len(self.moves)])

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(str(number) for number in range(len(self.moves[0])))

    @property
    def scales(self) -> tuple[Scale, ...]:
        zero = [0.0] * len(self.blocks)
        ends = [(self.mean(zero, m), self.mean(moves, m)) for m, moves in enumerate(self.moves)]
        return tuple(Scale(low, high - low) for low, high in ends)

    def values(self, x: Sequence[float], task: int) -> list[float]:
        bent = sum(
            -bend * (one - top) ** 2
            for bend, one, top in zip(self.bends[task], x, self.tops[task], strict=True)
        )
        tied = self.ties[task] * sum(a * b for a, b in pairwise(x))
        noise = [one * (row + 1) * x[row % len(x)] for row, one in enumerate(self.noise)]
        return [bent + tied + one for one in noise]

    def mean(self, x: Sequence[float], task: int) -> float:
        values = self.values(x, task)
        return sum(values) / len(values)

    def place(self, state: State) -> Vector:
        """The numbers of a state."""
        return [
            sum(
                one.scale * state.share * one.kept**0.5 * moves[block]
                for one, moves in zip(row, self.moves, strict=True)
            )
            for block, row in enumerate(state.rows)
        ]

    def score(self, state: State, task: int) -> Sample:
        self.asked.append(state.key)
        values = self.values(self.place(state), task)
        return Sample(tuple(values), tuple(0.5 for _ in values))

    def deletions(self, state: State, task: int) -> list[Sample]:
        return [self.score(state.without(block), task) for block in range(len(self.blocks))]

    def additions(self, states: Sequence[State], task: int) -> list[list[Sample]]:
        return [
            [self.score(state.alone(block), task) for block in range(len(self.blocks))] for state in states
        ]
