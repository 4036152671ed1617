"""Means of several tensors on the sphere: of their directions, with their lengths averaged apart.

With n the norms, u = x / n and w the weights, both methods give a vector of length sum(w n):

- multislerp: along sum(w u). (mergekit goes to that point and there adds the weighted sum of what is left of
  each u in the tangent space, which is 0.)
- karcher: along the point m of the sphere from which the squared angles to all u have the least sum
  (Karcher 1977), found by m <- exp_m(sum(w log_m(u))).

Every such point is a sum of the x, so one pass that takes their inner products is all that is needed:
m is known by its coefficients, and angles, lengths and steps by these and the products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kanna.errors import InputError
from kanna.methods.merge.rules.sums import added

# Directions cancel where their sum is this small a part of its parts.
_CANCELLED = 1e-9


class Directions:
    """sum(c x), with coefficients that depend on inner products of the x.

    Args:
        name: Of the tensor, for messages.
        models: Indices of the tensors to be averaged.
        base: Index of the model from which differences are taken, which are averaged in place of the models
            and added to it; -1 for the models themselves.
        weights: One for each of `models`.
        steps: How often the point is moved to where angles balance; 0 for multislerp.
        tolerance: A step that is no longer than this, in radians, is the last.
    """

    kept = (0, 0)
    looks = 1

    def __init__(
        self,
        name: str,
        models: Sequence[int],
        base: int,
        weights: Sequence[float],
        steps: int = 0,
        tolerance: float = 0.0,
    ) -> None:
        self._name, self._models, self._base = name, tuple(models), base
        self._weights, self._steps, self._tolerance = np.array(weights), steps, tolerance
        self._products = np.zeros((len(models), len(models)))
        self._coefficients: np.ndarray | None = None

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        vectors = self._vectors(chunk)
        for row, left in enumerate(vectors):
            for column, right in enumerate(vectors[: row + 1]):
                product = added(float(self._products[row, column]), left, right)
                self._products[row, column] = self._products[column, row] = product

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        if self._coefficients is None:
            self._coefficients = self._settled()
        first, *others = self._vectors(chunk)
        # Written around the first, equal models give themselves: their coefficients sum to 1.
        result = first * float(self._coefficients.sum())
        for coefficient, vector in zip(self._coefficients[1:], others, strict=True):
            result += (vector - first).mul_(float(coefficient))
        return result if self._base < 0 else result.add_(chunk[self._base])

    def _vectors(self, chunk: Sequence[Tensor]) -> list[Tensor]:
        if self._base < 0:
            return [chunk[index] for index in self._models]
        return [chunk[index] - chunk[self._base] for index in self._models]

    def _settled(self) -> np.ndarray:
        """Coefficients of the x; a vector of zeros has no direction, and counts in the mean length alone."""
        lengths = np.sqrt(np.diag(self._products))
        there = lengths > 0
        if not there.any():
            return np.zeros(len(lengths))
        sizes = np.where(there, lengths, 1)
        cosines = self._products / np.outer(sizes, sizes)
        weights = np.where(there, self._weights, 0)
        point = self._normed(weights, cosines)
        shares = weights / weights.sum() if self._steps else weights
        for _ in range(self._steps):
            point, step = _moved(point, shares, cosines)
            if step <= self._tolerance:
                break
        return point / sizes * float(self._weights @ lengths)

    def _normed(self, point: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        length = math.sqrt(max(0.0, float(point @ cosines @ point)))
        if length <= _CANCELLED * np.abs(point).sum():
            raise InputError(
                f"{self._name}: the weighted directions of the models cancel, so they have no mean",
                "give other weights, or merge with linear",
            )
        return point / length


def _moved(point: np.ndarray, weights: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, float]:
    """A point after one step, and the step's length in radians."""
    to_models = np.clip(cosines @ point, -1, 1)
    angles = np.arccos(to_models)
    sines = np.sin(angles)
    # angle / sine tends to 1 where both vanish.
    stretch = weights * np.divide(angles, sines, out=np.ones_like(angles), where=sines > 0)
    tangent = stretch - float(stretch @ to_models) * point
    step = math.sqrt(max(0.0, float(tangent @ cosines @ tangent)))
    if step == 0:
        return point, 0.0
    moved = math.cos(step) * point + math.sin(step) / step * tangent
    return moved / math.sqrt(float(moved @ cosines @ moved)), step
