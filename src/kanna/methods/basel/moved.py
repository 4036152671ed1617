"""How weights moved while they were learnt: of every basis, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.methods.basel.bases import Bases
from kanna.models.matrix import Matrix

# Bases of which it is told by what they are excited, on either side.
SHOWN = 5


@dataclass(frozen=True)
class Weights:
    """Of all bases that a matrix had.

    Args:
        before: (k,) as they were.
        after: (k,) as they were learnt; 0 where a basis was dropped.
    """

    before: Tensor
    after: Tensor

    @property
    def change(self) -> Tensor:
        """(k,) of each, by the norm of the matrix, so that matrices of any scale can be set side by side."""
        return (self.after - self.before) / self.before.norm().clamp(min=1e-30)

    @property
    def movement(self) -> float:
        """Of those that stayed together."""
        return float(self.change[self.after > 0].norm())


def first_weights(bases: Mapping[str, Bases]) -> dict[str, Tensor]:
    """Matrix -> (k,) weights before anything is learnt."""
    return {name: each.right.norm(dim=1).double().cpu() for name, each in bases.items()}


@torch.no_grad()
def weights_of(
    first: Mapping[str, Tensor], bases: Mapping[str, Bases], kept: Mapping[str, Tensor]
) -> dict[str, Weights]:
    """Matrix -> its weights.

    Args:
        kept: Matrix -> places of the bases it still has.
    """
    found = {}
    for name, before in first.items():
        after = torch.zeros_like(before)
        after[kept[name].cpu()] = bases[name].sigma.double().cpu()
        found[name] = Weights(before, after)
    return found


def most_moved(weights: Mapping[str, Weights], matrices: Sequence[Matrix]) -> list[str]:
    """Of each role the matrix whose weights moved most, the most moved of all first; of equals the first."""
    best: dict[str, str] = {}
    for matrix in matrices:
        held = best.setdefault(matrix.role, matrix.name)
        if weights[matrix.name].movement > weights[held].movement:
            best[matrix.role] = matrix.name
    return sorted(best.values(), key=lambda name: -weights[name].movement)


def extremes(weights: Mapping[str, Weights], gained: bool) -> list[tuple[str, int]]:
    """(matrix, place) of the bases that gained most, or lost most; dropped ones lost all that they had."""
    sign = -1.0 if gained else 1.0
    names = list(weights)
    changes = torch.cat([sign * weights[name].change for name in names])
    matrix = torch.cat([torch.full((len(weights[name].before),), n) for n, name in enumerate(names)])
    place = torch.cat([torch.arange(len(weights[name].before)) for name in names])
    order = changes.argsort(stable=True)[:SHOWN]
    return [(names[int(matrix[i])], int(place[i])) for i in order if changes[i] < 0]
