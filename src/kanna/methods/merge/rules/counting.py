"""The k largest magnitudes, and quantiles, of a tensor that comes in chunks: by counting bit patterns.

Of floating-point numbers that are not negative the order is that of their bits as whole numbers. Each pass
counts sixteen bits, from the highest on: two passes for float32, four for float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


class Above:
    """Picks the magnitudes above a threshold, and the first few of those that are equal to it.

    Args:
        threshold: Its bits.
        equal: How many of those at it are picked.
        dtype: Of the threshold; values of a smaller one are widened.
    """

    def __init__(self, threshold: int, equal: int, dtype: torch.dtype) -> None:
        self.equal = equal  # how many of them are left
        self._threshold, self._dtype = threshold, dtype

    @property
    def size(self) -> float:
        """The threshold as a number."""
        return float(torch.tensor(self._threshold, dtype=_WHOLE[self._dtype]).view(self._dtype))

    def pick(self, values: Tensor) -> Tensor:
        """Which values of a chunk are picked; called in order."""
        bits = magnitude_bits(values, self._dtype)
        chosen = bits > self._threshold
        if self.equal:
            (equal,) = torch.nonzero(bits == self._threshold, as_tuple=True)
            chosen[equal[: self.equal]] = True
            self.equal -= min(self.equal, len(equal))
        return chosen

    def prune(self, values: Tensor) -> None:
        """Set the values of a chunk that are not picked to 0."""
        if values.dtype != self._dtype:
            keep_only(values, self.pick(values))
            return
        size = self.size
        equal = np.flatnonzero(np.abs(values.numpy()) == size)[: self.equal] if self.equal else ()
        # Shrinking is several times faster than a mask, and does not touch what is larger.
        pruned = torch.hardshrink(values, size)
        if len(equal):
            pruned[equal] = values[equal]
            self.equal -= len(equal)
        values.copy_(pruned)


class Largest:
    """Picks the k largest magnitudes; of those at the threshold, the ones of the lowest index.

    Args:
        k: How many, at least 1.
        dtype: Of the values.
    """

    def __init__(self, k: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._counts = np.zeros(2**_BITS, dtype=np.int64)
        self._pass = 0
        self.known = 0  # the upper bits of the threshold, in a pass all that the passes before it found
        self._wanted = k  # of those whose high bits are those of the threshold
        self._shift = dtype.itemsize * 8
        self._above: Above | None = None

    def count(self, number: int, values: Tensor) -> None:
        """See a chunk, in pass `number`."""
        seen = self.counts(number)
        bits = magnitude_bits(values, self._dtype).numpy()
        if self._pass:
            bits = bits[(bits >> self._shift) == self.known]
        part = bits >> (self._shift - _BITS)
        if self._pass:  # the highest bit of all is that of the sign, which is 0
            part &= 2**_BITS - 1
        counts = np.bincount(part)
        seen[: len(counts)] += counts

    def counts(self, number: int) -> np.ndarray:
        """How often which sixteen bits were seen so far in pass `number`, to be added to."""
        while self._pass < number:
            self._settle()
        return self._counts

    def pick(self, values: Tensor) -> Tensor:
        """Which values of a chunk are among them; called in order, after all passes."""
        return self.above.pick(values)

    def prune(self, values: Tensor) -> None:
        """Set the values of a chunk that are not among them to 0; called in order, after all passes."""
        self.above.prune(values)

    @property
    def above(self) -> Above:
        """What picks them, after all passes."""
        if self._above is None:
            self._above = Above(self.threshold, self.wanted, self._dtype)
        return self._above

    @property
    def threshold(self) -> int:
        """Bits of the smallest of them, after all passes."""
        while self._shift:
            self._settle()
        return self.known

    @property
    def wanted(self) -> int:
        """How many of those that are equal to the threshold are among them, after all passes."""
        while self._shift:
            self._settle()
        return self._wanted

    def equal(self, values: Tensor) -> int:
        """How many values of a chunk are as large as the threshold, after all passes."""
        return int((magnitude_bits(values, self._dtype) == self.threshold).sum())

    def _settle(self) -> None:
        """Sixteen bits more of the threshold are known."""
        above = np.cumsum(self._counts[::-1])[::-1]  # how many have this pattern or a higher one
        pattern = int(np.flatnonzero(above >= self._wanted)[-1])
        self._wanted -= int(above[pattern] - self._counts[pattern])
        self.known = (self.known << _BITS) | pattern
        self._shift -= _BITS
        self._pass += 1
        self._counts[:] = 0


def magnitude_bits(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Magnitudes as whole numbers, in their order."""
    return values.abs().to(dtype).view(_WHOLE[dtype])


def keep_only(values: Tensor, stays: Tensor) -> None:
    """Set the values that do not stay to 0: by their bits, which is faster than a product.

    Args:
        stays: For each value, true or false.
    """
    bits = values.view(_WHOLE[values.dtype]).numpy()
    bits &= -stays.numpy().view(np.int8)  # of -1 all bits are set


class Quantiles:
    """Quantiles of a tensor's values, linear between the two that are next to them.

    Args:
        shares: In [0, 1].
        count: Of the tensor's values.
        dtype: Of the values.
        lower: Take the lower one of the two.
    """

    def __init__(self, shares: Sequence[float], count: int, dtype: torch.dtype, lower: bool = False) -> None:
        self._dtype = dtype
        places = [share * (count - 1) for share in shares]
        places = [float(math.floor(place)) for place in places] if lower else places
        self._between = [place - math.floor(place) for place in places]
        self._neighbours = [(math.floor(place), min(count - 1, math.floor(place) + 1)) for place in places]
        # Of each rank that is needed: the bits that are known, and the rank among those that share them.
        self._known = {rank: (0, rank) for pair in self._neighbours for rank in pair}
        self._counts: dict[int, np.ndarray] = {}
        self._pass, self._shift = 0, dtype.itemsize * 8
        self.passes = passes(dtype)

    def count(self, number: int, values: Tensor) -> None:
        """See a chunk, in pass `number`."""
        while self._pass < number:
            self._settle()
        bits = _ordered(values.view(_WHOLE[self._dtype]).numpy(), self._dtype)
        parts = (bits >> np.uint64(self._shift - _BITS)) & np.uint64(2**_BITS - 1)
        high = bits >> np.uint64(self._shift) if self._pass else np.zeros_like(bits)
        for prefix in {prefix for prefix, _ in self._known.values()}:
            counts = np.bincount(parts[high == prefix].astype(np.int64), minlength=2**_BITS)
            self._counts[prefix] = self._counts.get(prefix, 0) + counts

    def values(self) -> list[float]:
        """The quantiles, after all passes."""
        while self._shift:
            self._settle()
        sorted_values = {rank: _value(bits, self._dtype) for rank, (bits, _) in self._known.items()}
        pairs = [(sorted_values[below], sorted_values[above]) for below, above in self._neighbours]
        return [
            below + share * (above - below)
            for (below, above), share in zip(pairs, self._between, strict=True)
        ]

    def _settle(self) -> None:
        """Sixteen bits more of each value that is needed are known."""
        for rank, (prefix, place) in self._known.items():
            upto = np.cumsum(self._counts[prefix])
            pattern = int(np.searchsorted(upto, place, side="right"))
            before = int(upto[pattern] - self._counts[prefix][pattern])
            self._known[rank] = ((prefix << _BITS) | pattern, place - before)
        self._counts = {}
        self._shift -= _BITS
        self._pass += 1


def _ordered(bits: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Whole numbers in the order of the floating-point numbers with these bits, of either sign."""
    size = dtype.itemsize * 8
    top = np.uint64(1 << (size - 1))
    unsigned = bits.view(f"uint{size}").astype(np.uint64)
    return np.where(unsigned & top, ~unsigned & np.uint64(2**size - 1), unsigned | top)


def _value(ordered: int, dtype: torch.dtype) -> float:
    """The number that `_ordered` made this of."""
    size = dtype.itemsize * 8
    top = 1 << (size - 1)
    bits = ordered ^ top if ordered & top else ~ordered & (2**size - 1)
    return float(np.array([bits], dtype=f"uint{size}").view(f"float{size}")[0])
