"""Model Stock (Jang et al. 2024): the angle between models says how far to go from the base to their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from kanna.methods.merge.rules.sums import added


class ModelStock:
    """base + t mean(x - base), t = N cos / (1 + (N - 1) cos), of N models.

    cos is the mean over all pairs of differences; a difference of 0 counts as being at a right angle.

    Args:
        base: Index of the base model.
        models: How many tensors there are, the base among them.
    """

    kept = (0, 0)
    looks = 1

    def __init__(self, base: int, models: int) -> None:
        self._base = base
        self._others = [index for index in range(models) if index != base]
        self._products = dict.fromkeys([*combinations(self._others, 2), *((i, i) for i in self._others)], 0.0)

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        changes = {index: chunk[index] - chunk[self._base] for index in self._others}
        for first, second in self._products:
            before = self._products[first, second]
            self._products[first, second] = added(before, changes[first], changes[second])

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self._base]
        total = torch.zeros_like(base)
        for index in self._others:
            total += chunk[index].sub_(base)
        return total.mul_(self.ratio / len(self._others)).add_(base)

    @property
    def ratio(self) -> float:
        """t, in [0, 1]: models that turn away from each other leave the base."""
        cosine = math.fsum(map(self._cosine, combinations(self._others, 2)))
        cosine /= math.comb(len(self._others), 2)
        # Nothing is beyond the mean, and what rounding makes of a cosine of 1 is none.
        cosine = min(1.0, max(0.0, cosine))
        return len(self._others) * cosine / (1 + (len(self._others) - 1) * cosine)

    def _cosine(self, pair: tuple[int, int]) -> float:
        first, second = pair
        size = math.sqrt(self._products[first, first]) * math.sqrt(self._products[second, second])
        return self._products[pair] / size if size else 0.0
