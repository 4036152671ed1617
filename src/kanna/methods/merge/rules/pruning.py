"""Which entries of a difference stay: the largest, all but the very largest, or some by chance.

Every pruner sees the chunks of a tensor in order: in `passes` rounds of `count`, then in `pick`.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kanna.methods.merge.rules.counting import Largest, how_many, passes


class Pruner(Protocol):
    """Chooses entries of one difference.

    Attributes:
        passes: How often all values must be seen before the first is chosen.
        kept: How many entries stay; of a random choice, how many are expected to.
        scale: What stays is multiplied by it.
    """

    passes: int
    kept: int
    scale: float

    def count(self, number: int, values: Tensor) -> None:
        """See a chunk, in pass `number`."""

    def pick(self, values: Tensor) -> Tensor:
        """Which values of a chunk stay."""


class All:
    """Everything stays."""

    passes, scale = 0, 1.0

    def __init__(self, count: int) -> None:
        self.kept = count

    def count(self, number: int, values: Tensor) -> None:
        raise AssertionError("all entries stay, whatever they are")

    def pick(self, values: Tensor) -> Tensor:
        return torch.ones_like(values, dtype=torch.bool)


class Trimmed:
    """The largest magnitudes stay, but for the `top` very largest: TIES with top = 0, Model Breadcrumbs else.

    Args:
        kept: How many stay, at least 1.
        top: How many of the largest go.
        dtype: Of the values.
    """

    scale = 1.0

    def __init__(self, kept: int, top: int, dtype: torch.dtype) -> None:
        self.kept, self.passes = kept, passes(dtype)
        self._inside = Largest(kept + top, dtype)
        self._outliers = Largest(top, dtype) if top else None

    def count(self, number: int, values: Tensor) -> None:
        self._inside.count(number, values)
        if self._outliers is not None:
            self._outliers.count(number, values)

    def pick(self, values: Tensor) -> Tensor:
        inside = self._inside.pick(values)
        return inside if self._outliers is None else inside & ~self._outliers.pick(values)


class Dropped:
    """Each entry stays with a probability, whatever it is (DARE, Yu et al. 2024).

    The random number of an entry is a function of the key and of its index alone, so chunks, threads and
    a resumed run make no difference.

    Args:
        density: The probability.
        count: Of the tensor's entries.
        rescale: Whether what stays is divided by it.
        key: Of the generator: the seed, the input and the tensor.
    """

    passes = 0

    def __init__(self, density: float, count: int, rescale: bool, key: str) -> None:
        self.kept = round(density * count)
        self.scale = 1 / density if rescale else 1.0
        self._density, self._at = density, 0
        digest = hashlib.sha256(key.encode()).digest()
        self._key = int.from_bytes(digest[:16], "little")

    def count(self, number: int, values: Tensor) -> None:
        raise AssertionError("chance does not look at values")

    def pick(self, values: Tensor) -> Tensor:
        first, self._at = self._at, self._at + len(values)
        return torch.from_numpy(uniform(self._key, first, len(values)) < self._density)


def uniform(key: int, first: int, count: int) -> np.ndarray:
    """Numbers `first` to `first + count` of a stream in [0, 1), by Philox (Salmon et al. 2011).

    Its counter gives four numbers a step.
    """
    generator = np.random.Philox(key=key)
    generator.advance(first // 4)
    words = generator.random_raw(first % 4 + count)[first % 4 :]
    return (words >> np.uint64(11)) * 2.0**-53


def trimmed(density: float, gamma: float, count: int, dtype: torch.dtype) -> Pruner | None:
    """By magnitude; None where nothing stays.

    Args:
        density: Share that stays.
        gamma: Share of the largest that goes; less where the density leaves no room for it.
    """
    kept = how_many(density, count)
    if kept == count:
        return All(count)
    top = min(int(gamma * count), count - kept)
    return Trimmed(kept, top, dtype) if kept else None


def dropped(density: float, count: int, rescale: bool, key: str) -> Pruner | None:
    """By chance; None where nothing stays."""
    if density == 1:
        return All(count)
    return Dropped(density, count, rescale, key) if density else None
