"""Arcee Fusion: of one model only the changes that matter go into the other.

How much an entry of a difference d matters is |d| KL(softmax(row of the model), softmax(row of the base)).
What is at least the median + 1.5 (third quartile - first quartile) of these, over the tensor, goes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kanna.methods.merge.rules.counting import Quantiles

# What mergekit adds to probabilities, which become 0 in float32.
_SMALLEST = 1e-8


class Fusion:
    """base + d where it matters.

    Args:
        base: Index of the base model.
        other: Index of the model.
        row: Entries of a row; chunks are whole rows.
        count: Of the tensor's entries.
        dtype: Of the values.
    """

    def __init__(self, base: int, other: int, row: int, count: int, dtype: torch.dtype) -> None:
        self._base, self._other, self._row = base, other, row
        self._quantiles = Quantiles((0.25, 0.5, 0.75), count, dtype, lower=True)  # as mergekit
        self._threshold: float | None = None
        self._kept, self._count = 0, count
        self.looks = self._quantiles.passes

    @property
    def kept(self) -> tuple[int, int]:
        return self._kept, self._count

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        self._quantiles.count(number, self._importance(chunk))

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        if self._threshold is None:
            first, median, third = self._quantiles.values()
            self._threshold = median + 1.5 * (third - first)
        goes = self._importance(chunk) >= self._threshold
        self._kept += int(goes.sum())
        return torch.where(goes, chunk[self._other], chunk[self._base])

    def _importance(self, chunk: Sequence[Tensor]) -> Tensor:
        model, base = (chunk[index].view(-1, self._row) for index in (self._other, self._base))
        p, q = torch.softmax(model, -1) + _SMALLEST, torch.softmax(base, -1) + _SMALLEST
        divergence = (p * torch.log(p / q)).sum(-1, keepdim=True)
        return ((model - base).abs() * divergence).flatten()
