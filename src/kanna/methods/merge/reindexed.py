"""Reads a tensor of a model in the order of the output's tokens, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
        there = own != NONE
        found[there] = self._read(self._part.model, self._part.tensor, own[there].tolist())
        lacking = (~there).nonzero().flatten().tolist()
        self._add_defaults(found, {place: self._defaults.get(first + place, ()) for place in lacking})
        if means and (empty := [place for place in lacking if first + place not in self._defaults]):
            found[empty] = self._mean_row()
        return found

    def _add_defaults(self, found: Tensor, sources: Mapping[int, Sequence[Row]]) -> None:
        """Put the mean of its sources into each place; where there are none, it stays as it is."""
        for turn in range(max(map(len, sources.values()), default=0)):
            turns: dict[tuple[int, str], list[tuple[int, int]]] = {}
            for place, rows in sources.items():
                if turn < len(rows):
                    row = rows[turn]
                    turns.setdefault((row.model, row.tensor), []).append((place, row.number))
            for (model, tensor), pairs in turns.items():
                found[[place for place, _ in pairs]] += self._read(model, tensor, [n for _, n in pairs])
        for place, rows in sources.items():
            if len(rows) > 1:
                found[place] /= len(rows)

    def _read(self, model: int, tensor: str, numbers: Sequence[int]) -> Tensor:
        held = self._models[model]
        values = held.rows(tensor, numbers, self._columns)
        return check_finite(values, f"{tensor} in {held.tensors[tensor].file}").to(self._dtype)

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
