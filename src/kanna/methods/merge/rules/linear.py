"""Weighted sums of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


class Linear:
    """sum(w x), divided by sum(w) where weights are normalised.

    Normalised, it is computed from the model with the largest weight on, x + sum(w' (y - x)): equal models
    give themselves, bit for bit.

    Args:
        weights: One for each model.
        normalize: Whether they are divided by their sum, which is not 0.
    """

    kept = (0, 0)
    looks = 0

    def __init__(self, weights: Sequence[float], normalize: bool) -> None:
        total = math.fsum(weights)
        self.weights = [weight / total for weight in weights] if normalize else list(weights)
        sizes = [abs(weight) for weight in self.weights]
        self.pivot = sizes.index(max(sizes)) if normalize else None

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        raise AssertionError("sums need no look at the whole tensor")

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        if self.pivot is None:
            result = chunk[0].mul_(self.weights[0])
            for values, weight in zip(chunk[1:], self.weights[1:], strict=True):
                result += values.mul_(weight)
            return result
        origin = chunk[self.pivot]
        result = origin.clone()
        for index, (values, weight) in enumerate(zip(chunk, self.weights, strict=True)):
            if index != self.pivot and weight != 0:
                result += values.sub_(origin).mul_(weight)
        return result
