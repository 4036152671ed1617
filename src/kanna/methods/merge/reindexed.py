"""Reads a tensor of a model in the order of the output's tokens, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kanna.checkpoint.reader import Checkpoint, check_finite
from kanna.methods.merge.layout import Part
from kanna.methods.merge.rows import NONE, Row, Rows, beside_rows

# Rows that a mean is taken over at once; it does not depend on anything else.
_BLOCK = 1024


class Reindexed:
    """A part whose rows stand where the output's tokens do.

    Args:
        models: All models.
        part: The tensor.
        rows: See `Rows`.
        index: Of the part.
        dtype: Of the values that are given.
    """

    def __init__(
        self, models: Sequence[Checkpoint], part: Part, rows: Rows, index: int, dtype: torch.dtype
    ) -> None:
        self._models, self._part, self._dtype = models, part, dtype
        self._own, self._defaults = rows.own[index], rows.defaults
        self._columns = math.prod(beside_rows(models[part.model].shape(part.tensor)))
        self._mean: Tensor | None = None

    def part(self, start: int, stop: int) -> Tensor:
        """Values `start` to `stop` of the tensor laid flat."""
        if start == stop:
            return torch.empty(0, dtype=self._dtype)
        first, end = start // self._columns, -(-stop // self._columns)
        values = self._rows(first, end, means=True).reshape(-1)
        return values[start - first * self._columns : stop - first * self._columns]

    def _rows(self, first: int, end: int, means: bool) -> Tensor:
        found = torch.zeros(end - first, self._columns, dtype=self._dtype)
        own = self._own[first:end]
        for start, stop in _runs(own):
            number = int(own[start])
            if number != NONE:
                found[start:stop] = self._read(Row(self._part.model, self._part.tensor, number), stop - start)
                continue
            for row in range(start, stop):
                sources = self._defaults.get(first + row)
                if sources:
                    found[row] = sum(self._read(one)[0] for one in sources) / len(sources)
                elif sources is None and means:
                    found[row] = self._mean_row()
        return found

    def _read(self, row: Row, count: int = 1) -> Tensor:
        model = self._models[row.model]
        flat = model.part(row.tensor, row.number * self._columns, (row.number + count) * self._columns)
        file = model.tensors[row.tensor].file
        return check_finite(flat, f"{row.tensor} in {file}").to(self._dtype).reshape(count, self._columns)

    def _mean_row(self) -> Tensor:
        """Of all rows that stand for a token."""
        if self._mean is None:
            total, count = torch.zeros(self._columns, dtype=torch.float64), 0
            for first in range(0, len(self._own), _BLOCK):
                end = min(first + _BLOCK, len(self._own))
                total += self._rows(first, end, means=False).double().sum(0)
                numbers = self._own[first:end].tolist()
                count += sum(n != NONE or first + i in self._defaults for i, n in enumerate(numbers))
            self._mean = (total / max(1, count)).to(self._dtype)
        return self._mean


def _runs(own: Tensor) -> list[tuple[int, int]]:
    """Stretches of rows that lie behind one another in the file, or have none there."""
    there = own != NONE
    joined = torch.where(there[1:], there[:-1] & (own[1:] - own[:-1] == 1), ~there[:-1])
    breaks = torch.nonzero(~joined)
    edges = [0, *(int(place) + 1 for place in breaks), len(own)]
    return list(pairwise(edges))
