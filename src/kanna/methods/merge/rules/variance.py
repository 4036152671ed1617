"""SCE (Wan et al. 2024): select entries by variance, calculate weights from these, erase minority signs.

1. Of each tensor the entries in which models differ most (variance over the models) are selected.
2. A model weighs as much as the mean square of its selected differences.
3. The sign of the sum of all differences is elected; those of the other sign go. Each entry is the weighted
   mean of the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from kanna.methods.merge.rules.counting import Largest, how_many, passes
from kanna.methods.merge.rules.sums import added


class Sce:
    """base + scale (weighted mean of selected differences of the elected sign).

    Where models agree in every entry there is nothing to select by, and all of it stays.

    Args:
        base: Index of the base model.
        models: How many tensors there are, the base among them.
        count: Of the tensor's entries.
        share: Of the entries with a variance, those that are selected; more than 0.
        scale: The `lambda` of recipes.
        dtype: Of the values.
    """

    def __init__(
        self, base: int, models: int, count: int, share: float, scale: float, dtype: torch.dtype
    ) -> None:
        self._base, self._scale, self._share, self._dtype = base, scale, share, dtype
        self._others = [index for index in range(models) if index != base]
        self._squares = dict.fromkeys(self._others, 0.0)
        self._selects = share < 1
        self._varying = self._selected = 0
        self._count = count
        self._for_squares: Largest | None = None
        self._for_merge: Largest | None = None
        # Which entries vary, the threshold, and the squares of what is selected.
        self._threshold_looks = 1 + passes(dtype) if self._selects else 0
        self.looks = self._threshold_looks + 1

    @property
    def kept(self) -> tuple[int, int]:
        entries = self._selected if self._selects and self._varying else self._count
        return entries * len(self._others), self._count * len(self._others)

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        differences = self._differences(chunk)
        if number == 0 and self._selects:
            self._varying += int((_variance(differences) > 0).sum())
        elif number < self._threshold_looks:
            self._count_variances(number - 1, differences)
        else:
            self._add_squares(differences)

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base, differences = chunk[self._base], self._differences(chunk)
        if self._for_merge is not None:
            differences = _masked(differences, self._for_merge)
        total = torch.zeros_like(base)
        for values in differences:
            total += values
        positive = total >= 0
        change, weights = torch.zeros_like(base), torch.zeros_like(base)
        for index, values in zip(self._others, differences, strict=True):
            agrees = torch.where(positive, values > 0, values < 0)
            change += values * agrees * self._weight(index)
            weights += agrees * self._weight(index)
        change /= torch.where(weights > 0, weights, torch.ones_like(weights))
        return change.mul_(self._scale).add_(base)

    def _differences(self, chunk: Sequence[Tensor]) -> list[Tensor]:
        return [chunk[index] - chunk[self._base] for index in self._others]

    def _count_variances(self, number: int, differences: Sequence[Tensor]) -> None:
        if not self._varying:
            return
        if self._for_merge is None:
            self._selected = how_many(self._share, self._varying)
            self._for_merge = Largest(self._selected, self._dtype)
        self._for_merge.count(number, _variance(differences))

    def _add_squares(self, differences: Sequence[Tensor]) -> None:
        if self._for_merge is not None:
            # Picking counts down those at the threshold, and entries are picked twice.
            self._for_squares = self._for_squares or copy.deepcopy(self._for_merge)
            differences = _masked(differences, self._for_squares)
        for index, values in zip(self._others, differences, strict=True):
            self._squares[index] = added(self._squares[index], values, values)

    def _weight(self, index: int) -> float:
        total = sum(self._squares.values())
        return self._squares[index] / total if total else 0.0


def _masked(differences: Sequence[Tensor], largest: Largest) -> list[Tensor]:
    selected = largest.pick(_variance(differences))
    return [values * selected for values in differences]


def _variance(differences: Sequence[Tensor]) -> Tensor:
    """Of each entry, over the models; exactly 0 where they agree, as it is taken around the first."""
    first, *others = differences
    apart = [values - first for values in others]
    mean, squares = torch.zeros_like(first), torch.zeros_like(first)
    for values in apart:
        mean += values
    mean /= len(differences)
    for values in apart:
        squares += (values - mean).square_()
    return squares.add_(mean.square_()).div_(len(differences))
