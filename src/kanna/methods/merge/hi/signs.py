"""Conflicts of blocks without any task, by the signs of weights alone. This is not the paper.

Of an expert's difference d in a block, and the sum of all experts' differences there: entries of d against
the sign of the sum are outvoted. gamma is their share of the energy, that is of the sum of squares of d,
less the share that would be outvoted if every sign of d were thrown by a coin while all sizes stayed: of each
entry that is smaller than the rest of the sum, half. Unrelated differences thus have a gamma of about 0,
experts that agree a negative one, experts that fight a positive one. Its standard error is that of the coins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kanna.methods.merge.hi.merges import Mixing
from kanna.methods.merge.hi.ranking import Ranked
from kanna.methods.merge.hi.resolving import Round, Step, action_for
from kanna.methods.merge.hi.state import State, Treatment, nothing, only
from kanna.progress import Progress


@dataclass(frozen=True)
class SignConflict(Ranked):
    """Of one block.

    Args:
        block: Its number.
        over: Of each expert, the outvoted share of its energy beyond what coins give.
        deviations: Standard errors of that.
        shares: Of each expert, how much of the energy of its whole difference lies in the block.
    """

    block: int
    over: tuple[float, ...]
    deviations: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def place(self) -> int:
        return self.block

    @property
    def gamma(self) -> tuple[float, ...]:
        return self.over

    @property
    def errors(self) -> tuple[float, ...]:
        return self.deviations

    @property
    def strongest(self) -> int:
        return max(range(len(self.shares)), key=lambda index: self.shares[index])


@dataclass
class Votes:
    """Sums over the entries of a block, for each expert.

    Args:
        experts: How many there are.
    """

    experts: int
    energy: list[float] = field(init=False)
    outvoted: list[float] = field(init=False)
    by_chance: list[float] = field(init=False)
    variance: list[float] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("energy", "outvoted", "by_chance", "variance"):
            setattr(self, name, [0.0] * self.experts)

    def add(self, differences: Sequence[Tensor]) -> None:
        """See the entries of one tensor: (n,) of each expert's difference."""
        stack = torch.stack([one.double().flatten() for one in differences])
        total = stack.sum(0)
        for index, own in enumerate(stack):
            squares, smaller = own.square(), own.abs() < (total - own).abs()
            self.energy[index] += float(squares.sum())
            self.outvoted[index] += float(squares[own * total < 0].sum())
            self.by_chance[index] += float(squares[smaller].sum()) / 2
            self.variance[index] += float(squares[smaller].square().sum()) / 4

    def conflict(self, block: int, energies: Sequence[float]) -> SignConflict:
        """What they say.

        Args:
            energies: Of each expert, in all blocks.
        """
        sizes = [one or 1.0 for one in self.energy]  # what has no energy loses none
        return SignConflict(
            block,
            tuple((a - b) / c for a, b, c in zip(self.outvoted, self.by_chance, sizes, strict=True)),
            tuple(math.sqrt(one) / size for one, size in zip(self.variance, sizes, strict=True)),
            tuple(one / (whole or 1.0) for one, whole in zip(self.energy, energies, strict=True)),
        )


def sign_conflicts(mixing: Mixing, treatment: Treatment, progress: Progress) -> list[SignConflict]:
    """Of every block of a merge in which all experts are treated alike.

    Args:
        progress: Told of blocks.
    """
    exact, blocks, experts = replace(mixing, dtype="float32"), mixing.blocks, len(mixing.models)
    found: list[Votes] = []
    for number, block in enumerate(blocks):
        progress("sign conflicts", number, len(blocks))
        base = exact.tensors(nothing(len(blocks), experts), block.tensors)
        treated = [
            exact.tensors(only(expert, treatment, experts, len(blocks)), block.tensors)
            for expert in range(experts)
        ]
        votes = Votes(experts)
        for name, origin in base.items():
            votes.add([one[name].double() - origin.double() for one in treated])
        found.append(votes)
    progress("sign conflicts", len(blocks), len(blocks))
    energies = [math.fsum(votes.energy[expert] for votes in found) for expert in range(experts)]
    return [votes.conflict(number, energies) for number, votes in enumerate(found)]


def resolved_by_signs(
    names: Sequence[str],
    treatment: Treatment,
    state: State,
    found: Sequence[SignConflict],
    tau: float | None,
) -> tuple[State, Round]:
    """A merge in which conflicts are acted on as in the paper, with no task to say whether that is better.

    Args:
        names: Of the experts.
        treatment: Of each of them where nothing is wrong.
    """
    steps: list[Step] = []
    treatments = [treatment] * len(names)
    for conflict in sorted(found, key=lambda one: (-one.total, one.block)):
        row, action = action_for(names, treatments, state.rows[conflict.block], conflict, tau)
        changed = state.replaced(conflict.block, row)
        if changed.key != state.key:
            state = changed
            steps.append(Step(conflict.block, conflict.kind(tau), action, None, None, True))
    return state, Round(tuple(found), tuple(steps))
