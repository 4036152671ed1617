"""Operations on float32 whose loops are compiled; what they compute is said where the plain ones are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kanna.methods.merge.rules.differences import Pruned, TaskArithmetic
from kanna.methods.merge.rules.fast import compiled
from kanna.methods.merge.rules.linear import Linear
from kanna.methods.merge.rules.pruning import Dropped, Pruner, Trimmed


class FastLinear(Linear):
    """Normalised sums; others are plain."""

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        if self.pivot is None:
            return super().merged(chunk)
        origin = chunk[self.pivot]
        result = origin.clone()
        for index, (values, weight) in enumerate(zip(chunk, self.weights, strict=True)):
            if index != self.pivot and weight != 0:
                compiled.add_difference(result.numpy(), values.numpy(), origin.numpy(), np.float32(weight))
        return result


class FastTaskArithmetic(TaskArithmetic):
    """All of it."""

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self.base]
        change = torch.zeros_like(base)
        for index, (values, weight) in enumerate(zip(chunk, self.weights, strict=True)):
            if index != self.base and weight != 0:
                compiled.add_difference(change.numpy(), values.numpy(), base.numpy(), np.float32(weight))
        compiled.scale_onto(change.numpy(), base.numpy(), np.float32(self.scale))
        return change


class FastPruned(Pruned):
    """What is trimmed or drops by chance, and elections in which no weight is negative; the rest is plain."""

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        for index, pruner in self.pruners.items():
            if number < pruner.passes:
                _count(pruner, number, chunk[index], chunk[self.base])

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self.base]
        total = torch.zeros_like(base)
        for index, pruner in self.pruners.items():
            _add(total, chunk[index], base, self.weights[index] * pruner.scale, pruner)
        if self.elects:
            total = self.elected(chunk, total)
        compiled.scale_onto(total.numpy(), base.numpy(), np.float32(self.scale))
        return total

    def elected(self, chunk: Sequence[Tensor], total: Tensor) -> Tensor:
        if any(self.weights[index] < 0 for index in self.pruners):
            return super().elected(chunk, total)
        change, weights = np.zeros(len(total), np.float32), np.zeros(len(total), np.float32)
        for index in self.pruners:
            weight = np.float32(self.weights[index])
            compiled.add_agreeing(change, weights, chunk[index].numpy(), total.numpy(), weight)
        compiled.elect(change, weights, total.numpy(), self.normalize)
        return torch.from_numpy(change)


def _count(pruner: Pruner, number: int, values: Tensor, base: Tensor) -> None:
    if not isinstance(pruner, Trimmed):
        pruner.count(number, values - base)
        return
    for search in pruner.searches:
        counts = search.counts(number)
        if number == 0:
            compiled.count_high(values.numpy(), base.numpy(), counts)
        else:
            compiled.count_low(values.numpy(), base.numpy(), np.int32(search.known), counts)


def _add(total: Tensor, values: Tensor, base: Tensor, weight: float, pruner: Pruner) -> None:
    """Make of values what stays of their difference, times a weight, and add it."""
    sums, own, origin, factor = total.numpy(), values.numpy(), base.numpy(), np.float32(weight)
    if isinstance(pruner, Trimmed) and pruner.outliers is None:
        above = pruner.inside.above
        above.equal = compiled.add_largest(sums, own, origin, factor, np.float32(above.size), above.equal)
    elif isinstance(pruner, Dropped):
        compiled.add_drawn(sums, own, origin, factor, _drawn(pruner, len(values)), pruner.limit)
    else:
        pruner.prune(values.sub_(base))
        total += values.mul_(weight)


def _drawn(pruner: Dropped, count: int) -> compiled.Words:
    """The next random words; four come from each counter, the first of which is 1."""
    first, pruner.at = pruner.at, pruner.at + count
    words = np.empty((-(-(first + count) // 4) - first // 4, 4), np.uint64)
    low, high = (np.uint64(pruner.key >> shift & 2**64 - 1) for shift in (0, 64))
    compiled.draw(words, np.uint64(first // 4 + 1), low, high)
    return words.reshape(-1)[first % 4 : first % 4 + count]


FASTER: Mapping[type, type] = {Linear: FastLinear, TaskArithmetic: FastTaskArithmetic, Pruned: FastPruned}
