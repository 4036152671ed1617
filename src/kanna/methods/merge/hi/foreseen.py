"""How many evaluations Hi-Merging takes, at most."""

from __future__ import annotations

from dataclasses import dataclass

from kanna.errors import InputError
from kanna.methods.merge.hi.config import LAYER, MODEL, HiOptions


@dataclass(frozen=True)
class Evaluations:
    """Args:
    grid: Of the first stage.
    analysis: Of contributions in the first round.
    again: The same in each further round, where experts are known.
    steps: Of a round's changes, at most.
    others: Of base, experts and the merge to begin with.
    rounds: That may be begun.
    """

    grid: int
    analysis: int
    again: int
    steps: int
    others: int
    rounds: int

    @property
    def total(self) -> int:
        """At most."""
        further = max(0, self.rounds - 1) * (self.again + self.steps)
        return self.others + self.grid + (self.analysis + self.steps + further if self.rounds else 0)

    @property
    def first_round(self) -> int:
        """What a first round takes at most, with all before it."""
        return self.others + self.grid + self.analysis + self.steps


def evaluations(options: HiOptions, experts: int, blocks: int, pairs: int) -> Evaluations:
    """At most so many.

    Args:
        pairs: Of p and s.

    Raises:
        InputError: The budget is too small for one round, or for the first stage alone.
    """
    found = Evaluations(
        grid=0 if options.stages == LAYER else experts * pairs,
        analysis=experts * 4 * blocks,
        again=experts * 2 * blocks,
        steps=experts * blocks,
        others=experts * (3 if options.stages == MODEL else 5),
        rounds=0 if options.stages == MODEL else options.rounds,
    )
    needed = found.first_round if found.rounds else found.total
    if options.max_evaluations is not None and options.max_evaluations < needed:
        raise InputError(
            f"{options.max_evaluations} evaluations are too few: "
            f"{'one round' if found.rounds else 'the first stage'} may take {needed}",
            "give more, fewer values of --p and --s, or a larger --group",
        )
    return found
