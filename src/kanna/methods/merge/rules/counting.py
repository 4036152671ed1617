"""The k largest magnitudes of a tensor that comes in chunks: by counting bit patterns, never by sorting.

Of floating-point numbers that are not negative the order is that of their bits as whole numbers. Each pass
counts sixteen bits, from the highest on: two passes for float32, four for float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_BITS = 16
_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


def how_many(density: float, count: int) -> int:
    """Entries that a density keeps: at least one, but for a density of 0."""
    return 0 if density == 0 else min(count, max(1, math.floor(density * count)))


def passes(dtype: torch.dtype) -> int:
    """How often all values must be looked at."""
    return dtype.itemsize * 8 // _BITS


class Largest:
    """Picks the k largest magnitudes; of those at the threshold, the ones of the lowest index.

    Args:
        k: How many, at least 1.
        dtype: Of the values.
    """

    def __init__(self, k: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._counts = np.zeros(2**_BITS, dtype=np.int64)
        self._pass, self._threshold = 0, 0
        self._wanted = k  # of those whose high bits are those of the threshold
        self._shift = dtype.itemsize * 8

    def count(self, number: int, values: Tensor) -> None:
        """See a chunk, in pass `number`."""
        while self._pass < number:
            self._settle()
        bits = self._bits(values).numpy()
        shift = self._shift - _BITS
        if self._pass:
            bits = bits[(bits >> self._shift) == self._threshold]
        part = (bits >> shift) & (2**_BITS - 1)
        self._counts += np.bincount(part, minlength=2**_BITS)

    def pick(self, values: Tensor) -> Tensor:
        """Which values of a chunk are among them; called in order, after all passes."""
        while self._shift:
            self._settle()
        bits = self._bits(values)
        chosen = bits > self._threshold
        if self._wanted:
            (equal,) = torch.nonzero(bits == self._threshold, as_tuple=True)
            chosen[equal[: self._wanted]] = True
            self._wanted -= min(self._wanted, len(equal))
        return chosen

    def _settle(self) -> None:
        """Sixteen bits more of the threshold are known."""
        above = np.cumsum(self._counts[::-1])[::-1]  # how many have this pattern or a higher one
        pattern = int(np.flatnonzero(above >= self._wanted)[-1])
        self._wanted -= int(above[pattern] - self._counts[pattern])
        self._threshold = (self._threshold << _BITS) | pattern
        self._shift -= _BITS
        self._pass += 1
        self._counts[:] = 0

    def _bits(self, values: Tensor) -> Tensor:
        return values.abs().view(_WHOLE[self._dtype])
