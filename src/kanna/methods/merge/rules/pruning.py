"""Which entries of a difference stay: the largest, all but the very largest, or some by chance (and rank).

Every pruner sees the chunks of a tensor in order: in `passes` rounds of `count`, then in `pick`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kanna.methods.merge.known import BY_CHANCE, BY_NORM
from kanna.methods.merge.rules.counting import Above, Largest, how_many, keep_only, passes
from kanna.methods.merge.rules.sums import BLOCK, summed


class Pruner(Protocol):
    """Chooses entries of one difference.

    Attributes:
        passes: How often all values must be seen before the first is chosen.
        kept: How many entries stay, at the latest when all are picked; of a random choice, how many are
            expected to.
        scale: What stays is multiplied by it.
    """

    passes: int

    @property
    def kept(self) -> int: ...

    @property
    def scale(self) -> float: ...

    def count(self, number: int, values: Tensor) -> None:
        """See a chunk, in pass `number`."""

    def pick(self, values: Tensor) -> Tensor:
        """What each value of a chunk is multiplied by, apart from `scale`; mostly whether it stays."""

    def prune(self, values: Tensor) -> None:
        """Multiply a chunk by that, in its place, in the stead of `pick`."""


class All:
    """Everything stays."""

    passes, scale = 0, 1.0

    def __init__(self, count: int) -> None:
        self.kept = count

    def count(self, number: int, values: Tensor) -> None:
        raise AssertionError("all entries stay, whatever they are")

    def pick(self, values: Tensor) -> Tensor:
        return torch.ones_like(values, dtype=torch.bool)

    def prune(self, values: Tensor) -> None:
        pass


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
        self.inside = Largest(kept + top, dtype)
        self.outliers = Largest(top, dtype) if top else None

    @property
    def searches(self) -> list[Largest]:
        """For both ends of what stays."""
        return [self.inside] if self.outliers is None else [self.inside, self.outliers]

    def count(self, number: int, values: Tensor) -> None:
        for search in self.searches:
            search.count(number, values)

    def pick(self, values: Tensor) -> Tensor:
        inside = self.inside.pick(values)
        return inside if self.outliers is None else inside & ~self.outliers.pick(values)

    def prune(self, values: Tensor) -> None:
        if self.outliers is None:
            self.inside.prune(values)
        else:
            keep_only(values, self.pick(values))


class Between:
    """Magnitudes above a threshold stay, but for those above another, larger one; both are known before.

    Args:
        inside: The smaller one.
        outliers: The larger one; None where there is none.
    """

    passes, scale = 0, 1.0

    def __init__(self, inside: Above, outliers: Above | None) -> None:
        self._inside, self._outliers = inside, outliers
        self.kept = 0

    def count(self, number: int, values: Tensor) -> None:
        raise AssertionError("thresholds are known before")

    def pick(self, values: Tensor) -> Tensor:
        picked = self._inside.pick(values)
        if self._outliers is not None:
            picked &= ~self._outliers.pick(values)
        self.kept += int(np.count_nonzero(picked.numpy()))
        return picked

    def prune(self, values: Tensor) -> None:
        keep_only(values, self.pick(values))


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
        self.limit, self.at = below(density), 0
        self.key = hashed(key)

    def count(self, number: int, values: Tensor) -> None:
        raise AssertionError("chance does not look at values")

    def pick(self, values: Tensor) -> Tensor:
        return torch.from_numpy(self.drawn(len(values)) < self.limit)

    def drawn(self, count: int) -> np.ndarray:
        """The random words of the next entries; those below the limit stay."""
        first, self.at = self.at, self.at + count
        return words(self.key, first, count)

    def prune(self, values: Tensor) -> None:
        keep_only(values, self.pick(values))


class ByRank:
    """Each entry stays with a probability that grows with its rank in its row (DELLA, Deep et al. 2024).

    By magnitude, the probability goes from `density - spread` for the smallest to `density + spread` for the
    largest, in equal steps; of equal ones the first counts as larger. Chunks are whole rows.

    Args:
        density: The mean of the probabilities.
        spread: The `epsilon` of recipes.
        row: Entries of a row; one alone has the mean.
        count: Of the tensor's entries.
        rescale: Whether what stays is divided by its probability.
        key: As of `Dropped`.
    """

    passes, scale = 0, 1.0

    def __init__(self, density: float, spread: float, row: int, count: int, rescale: bool, key: str) -> None:
        self.kept = round(density * count)
        self._row, self._rescale, self._at = row, rescale, 0
        self._key = hashed(key)
        steps = torch.linspace(density + spread, density - spread, row, dtype=torch.float64)
        self._chances = steps if row > 1 else torch.tensor([density], dtype=torch.float64)

    def count(self, number: int, values: Tensor) -> None:
        raise AssertionError("ranks are known from one chunk")

    def pick(self, values: Tensor) -> Tensor:
        rows = values.abs().view(-1, self._row)
        order = torch.sort(rows, dim=1, descending=True, stable=True).indices
        chances = torch.empty(rows.shape, dtype=torch.float64)
        chances.scatter_(1, order, self._chances.expand(rows.shape))
        first, self._at = self._at, self._at + len(values)
        stays = torch.from_numpy(uniform(self._key, first, len(values))) < chances.flatten()
        return (stays / chances.flatten()).to(values.dtype) if self._rescale else stays

    def prune(self, values: Tensor) -> None:
        values *= self.pick(values)


class NormMatched:
    """What another pruner leaves, scaled so that magnitudes sum to what they did before.

    Args:
        make: A new pruner, which scales nothing; two are needed, as each sees the chunks in order.
        block: Magnitudes that are added up at once; chunks are whole numbers of blocks, but for the last.
    """

    def __init__(self, make: Callable[[], Pruner], block: int) -> None:
        self._counting, self._picking, self._block = make(), make(), block
        self.passes = self._picking.passes + 1
        self._before = self._after = 0.0

    @property
    def kept(self) -> int:
        return self._picking.kept

    @property
    def scale(self) -> float:
        return self._before / self._after if self._after else 1.0

    def count(self, number: int, values: Tensor) -> None:
        if number < self._picking.passes:
            self._counting.count(number, values)
            self._picking.count(number, values)
            return
        sizes = values.abs()
        self._before = summed(self._before, sizes, self._block)
        self._after = summed(self._after, sizes * self._counting.pick(values), self._block)

    def pick(self, values: Tensor) -> Tensor:
        return self._picking.pick(values)

    def prune(self, values: Tensor) -> None:
        self._picking.prune(values)


def looked(pruners: Mapping[int, Pruner], number: int, chunk: Sequence[Tensor], base: int) -> None:
    """Let each pruner that needs pass `number` see its model's difference from the base."""
    for index, pruner in pruners.items():
        if number < pruner.passes:
            pruner.count(number, chunk[index] - chunk[base])


def hashed(key: str) -> int:
    """A key of the generator."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")


def words(key: int, first: int, count: int) -> np.ndarray:
    """Numbers `first` to `first + count` of a stream of 64 bits each, by Philox (Salmon et al. 2011).

    Its counter gives four numbers a step.
    """
    generator = np.random.Philox(key=key)
    generator.advance(first // 4)
    return generator.random_raw(first % 4 + count)[first % 4 :]


def uniform(key: int, first: int, count: int) -> np.ndarray:
    """The same numbers in [0, 1), of their upper 53 bits."""
    return (words(key, first, count) >> np.uint64(11)) * 2.0**-53


def below(share: float) -> np.uint64:
    """Words below this are those whose number in [0, 1) is below a share, which is below 1."""
    return np.uint64(math.ceil(share * 2**53) << 11)


def trimmed(
    density: float, gamma: float, count: int, dtype: torch.dtype, match: bool = False
) -> Pruner | None:
    """By magnitude; None where nothing stays.

    Args:
        density: Share that stays.
        gamma: Share of the largest that goes; less where the density leaves no room for it.
        match: Whether the sum of magnitudes stays what it was.
    """
    kept = how_many(density, count)
    if kept == count:
        return All(count)
    if not kept:
        return None
    top = min(int(gamma * count), count - kept)
    make = partial(Trimmed, kept, top, dtype)
    return NormMatched(make, BLOCK) if match else make()


def dropped(density: float, count: int, rescale: float, key: str) -> Pruner | None:
    """By chance; None where nothing stays."""
    if density == 1:
        return All(count)
    if not round(density * count):
        return None
    make = partial(Dropped, density, count, rescale == BY_CHANCE, key)
    return NormMatched(make, BLOCK) if rescale == BY_NORM else make()


def ranked(density: float, spread: float, row: int, count: int, rescale: float, key: str) -> Pruner | None:
    """By chance and rank; None where nothing stays."""
    if density == 1:
        return All(count)
    if not round(density * count):
        return None
    make = partial(ByRank, density, spread, row, count, rescale == BY_CHANCE, key)
    return NormMatched(make, row) if rescale == BY_NORM else make()
