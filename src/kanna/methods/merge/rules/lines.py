"""Angles of rows or columns of a matrix, in place of the whole: spherical interpolation and Model Stock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor


class SphericalLines:
    """As `Spherical`, but each row, or column, goes along an arc of its own.

    Args:
        first: Index of x.
        second: Index of y.
        base: Index of the model from which differences are taken; -1 without one.
        t: How far.
        parallel: The size of a cosine from which on lines are mixed straight.
        row: Entries of a row; chunks are whole rows.
        columns: Whether columns are interpolated; they are seen in one look before.
    """

    kept = (0, 0)

    def __init__(
        self, first: int, second: int, base: int, t: float, parallel: float, row: int, columns: bool
    ) -> None:
        self._first, self._second, self._base = first, second, base
        self._t, self._parallel, self._row = t, parallel, row
        self.looks = 1 if columns else 0
        self._sums = np.zeros((3, row))

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        x, y = (values.double().numpy() for values in self._lines(chunk))
        for index, (left, right) in enumerate(((x, x), (y, y), (x, y))):
            # Row by row behind what was there: a sum that chunks make no difference to.
            self._sums[index] = np.add.reduce(np.concatenate([self._sums[index : index + 1], left * right]))

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        x, y = self._lines(chunk)
        if self.looks:
            near, far = self._shares(*self._sums)
            shares = torch.from_numpy(near)[None], torch.from_numpy(far)[None]
        else:
            left, right = x.double().numpy(), y.double().numpy()
            products = (np.add.reduce(one, axis=1) for one in (left * left, right * right, left * right))
            near, far = self._shares(*products)
            shares = torch.from_numpy(near)[:, None], torch.from_numpy(far)[:, None]
        first, second = (share.to(x.dtype) for share in shares)
        # Straight lines have shares that sum to 1, and between equal ones give these, bit for bit.
        straight = torch.lerp(x, y, self._t)
        result = torch.where(torch.isnan(first), straight, x * first + y * second).flatten()
        return result if self._base < 0 else result + chunk[self._base]

    def _lines(self, chunk: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x, y = chunk[self._first], chunk[self._second]
        if self._base >= 0:
            x, y = x - chunk[self._base], y - chunk[self._base]
        return x.view(-1, self._row), y.view(-1, self._row)

    def _shares(self, xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each line of x and y is multiplied by; NaN where they are parallel."""
        cosines = _cosines(xx, yy, xy)
        angles = np.arccos(np.where(np.abs(cosines) > self._parallel, np.nan, cosines))
        sines = np.sin(angles)
        return np.sin((1 - self._t) * angles) / sines, np.sin(self._t * angles) / sines


class ModelStockLines:
    """As `ModelStock`, but each row has an angle, and so a ratio, of its own.

    Args:
        base: Index of the base model.
        models: How many tensors there are, the base among them.
        row: Entries of a row; chunks are whole rows.
    """

    kept = (0, 0)
    looks = 0

    def __init__(self, base: int, models: int, row: int) -> None:
        self._base, self._row = base, row
        self._others = [index for index in range(models) if index != base]

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        raise AssertionError("a chunk of whole rows is all that is needed")

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self._base].view(-1, self._row)
        changes = [chunk[index].view(-1, self._row).sub_(base) for index in self._others]
        total = torch.zeros_like(base)
        for change in changes:
            total += change
        ratio = torch.from_numpy(self._ratios(changes)).to(base.dtype)[:, None]
        return (total.mul_(ratio / len(changes)).add_(base)).flatten()

    def _ratios(self, changes: Sequence[Tensor]) -> np.ndarray:
        wide = [change.double().numpy() for change in changes]
        squares = [np.add.reduce(one * one, axis=1) for one in wide]
        pairs = list(combinations(range(len(wide)), 2))
        cosines = sum(
            _cosines(squares[left], squares[right], np.add.reduce(wide[left] * wide[right], axis=1))
            for left, right in pairs
        )
        mean = np.clip(cosines / len(pairs), 0, 1)
        return len(wide) * mean / (1 + (len(wide) - 1) * mean)


def _cosines(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """0 where a line is all zeros."""
    sizes = np.sqrt(xx) * np.sqrt(yy)
    return np.clip(np.divide(xy, sizes, out=np.zeros_like(xy), where=sizes > 0), -1, 1)
