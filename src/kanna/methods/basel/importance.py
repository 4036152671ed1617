"""What a basis is worth: by how much the loss is expected to rise when it is dropped.

Dropping basis i moves sigma_i to 0. To second order the loss changes by -sigma_i g_i + sigma_i^2 h_i / 2,
where g is its slope in sigma_i and h its curvature. With t = sigma_i g_i of each step since the last event:

    fisher    E[t^2] / 2    the Fisher information E[g^2] stands for the curvature h
    taylor    |E[t]|        the slope alone
    sigma     sigma_i       the paper's: a weight that was learnt anew says by itself what it is worth
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kanna.methods.basel.bases import Bases
from kanna.methods.basel.config import Importance


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

    def scores(self, matrices: Mapping[str, Bases]) -> dict[str, Tensor]:
        """Matrix -> (k,) float64 worth of its bases."""
        with torch.no_grad():
            if self.importance == "sigma":
                return {name: bases.sigma.double() for name, bases in matrices.items()}
            return {name: (self.sums[name] / self.steps).abs() for name in matrices}
