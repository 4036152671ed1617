"""What a basis is worth: by how much the loss is expected to rise when it is dropped.

Dropping basis i moves sigma_i to 0. To second order the loss changes by -sigma_i g_i + sigma_i^2 h_i / 2,
where g is its slope in sigma_i and h its curvature. With t = sigma_i g_i of each step since the last event:

    fisher    E[t^2] / 2               the Fisher information E[g^2] stands for the curvature h
    taylor    |E[t]|                   the slope alone
    bsi       -E[t] + sigma^2 h / 2    both, h measured: see `curvatures`
    sigma     sigma_i                  the paper's: a weight that was learnt anew says itself what it is worth

`bsi` is our reading of the abstract of arXiv 2605.01627. It may be below 0, where the loss is expected to
fall without the basis; such bases go first, those that gain most for each parameter before the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kanna.methods.basel.bases import Bases
from kanna.methods.basel.config import PROBES, Importance

# Weights are moved by this share of themselves, up and down, to see how slopes change.
_STEP = 1e-2


@dataclass
class Averages:
    """Running sums over the steps since the last event.

    Args:
        importance: Which.
        sums: Matrix -> (k,).
        steps: How many.
    """

    importance: Importance
    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def add(self, matrices: Mapping[str, Bases]) -> None:
        """Take in the gradients of a step."""
        if self.importance == "sigma":
            return
        for name, bases in matrices.items():
            sensitivity = bases.sensitivity().double()
            value = sensitivity.square() / 2 if self.importance == "fisher" else sensitivity
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def clear(self) -> None:
        self.sums, self.steps = {}, 0

    def scores(
        self, matrices: Mapping[str, Bases], curved: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Matrix -> (k,) float64 worth of its bases.

        Args:
            curved: What `curvatures` gave, for `bsi`.
        """
        with torch.no_grad():
            if self.importance == "sigma":
                return {name: bases.sigma.double() for name, bases in matrices.items()}
            means = {name: self.sums[name] / self.steps for name in matrices}
            if curved is None:
                return {name: mean.abs() for name, mean in means.items()}
            return {name: curved[name].clamp(min=0) / 2 - mean for name, mean in means.items()}


def curvatures(
    matrices: Mapping[str, Bases], gradients: Callable[[], object], generator: torch.Generator
) -> dict[str, Tensor]:
    """Matrix -> (k,) float64 estimates of sigma_i^2 h_i, h the diagonal of the Hessian in all weights sigma.

    Hutchinson's: with z_j = +1 or -1 at random, z_i (H z)_i is h_i but for terms whose mean is 0. All weights
    are moved at once, by `_STEP` z_j of themselves, and the slopes on the way up and down are compared:

        sigma_i^2 h_i ~ mean over probes of z_i sigma_i (g_i(sigma + e sigma z) - g_i(sigma - e sigma z)) / 2e

    Args:
        gradients: Lays the gradients of one batch, always the same, into the parameters as they are.
        generator: Of z.
    """
    sums = {name: torch.zeros_like(bases.weight, dtype=torch.float64) for name, bases in matrices.items()}
    for _ in range(PROBES):
        signs = {name: _signs(total, generator) for name, total in sums.items()}
        up, down = (
            _slopes(matrices, {name: 1 + way * _STEP * sign for name, sign in signs.items()}, gradients)
            for way in (1, -1)
        )
        for name, sign in signs.items():
            sums[name] += sign * (up[name] - down[name]) / (2 * _STEP)
    return {name: total / PROBES for name, total in sums.items()}


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, like.shape, generator=generator, device="cpu")
    return (2 * drawn - 1).double().to(like.device)


def _slopes(
    matrices: Mapping[str, Bases], factors: Mapping[str, Tensor], gradients: Callable[[], object]
) -> dict[str, Tensor]:
    """sigma_i times the slope in sigma_i where all sigma are multiplied by factors; left as they were."""
    before = {name: bases.weight.detach().clone() for name, bases in matrices.items()}
    with torch.no_grad():
        moved = {
            name: (bases.root.double() * factors[name].sqrt() - bases.offset) / bases.unit
            for name, bases in matrices.items()
        }
    _put(matrices, moved)
    gradients()
    found = {name: bases.sensitivity().double() / factors[name] for name, bases in matrices.items()}
    _put(matrices, before)
    return found


def _put(matrices: Mapping[str, Bases], weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, bases in matrices.items():
            bases.weight.copy_(weights[name])
