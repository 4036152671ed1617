"""What models differ by from a base, scaled, pruned and added to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.methods.merge.rules.pruning import Pruner, looked

# Weights that agree cancel where their sum is this small a part of their sizes; they are added in float32.
_CANCELLED = 1e-6


class TaskArithmetic:
    """base + scale sum(w (x - base)), where normalised divided by sum(w).

    Args:
        base: Index of the base model.
        weights: One for each model; that of the base does not count.
        normalize: Whether they are divided by their sum; where all are 0, nothing is added.
        scale: The `lambda` of recipes.
    """

    kept = (0, 0)
    looks = 0

    def __init__(self, base: int, weights: Sequence[float], normalize: bool, scale: float) -> None:
        self.base, self.scale = base, scale
        total = math.fsum(weights)
        self.weights = [weight / total if normalize and weight else weight for weight in weights]

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        raise AssertionError("sums need no look at the whole tensor")

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self.base]
        change = torch.zeros_like(base)
        for index, (values, weight) in enumerate(zip(chunk, self.weights, strict=True)):
            if index != self.base and weight != 0:
                change += values.sub_(base).mul_(weight)
        return change.mul_(self.scale).add_(base)


class Pruned:
    """base + scale sum(w p(x - base)), where p leaves some entries of each difference.

    With an election (TIES, Yadav et al. 2023) an entry is the sum of those whose sign is that of the sum of
    all, and divided by the weights of these where normalised; without one it is divided by all weights.

    Args:
        name: Of the tensor, for messages.
        base: Index of the base model.
        weights: One for each model.
        pruners: One for each model; None for a difference of which nothing stays.
        count: Of the tensor's entries.
        elect: Whether signs are elected.
        normalize: Whether entries are divided by weights.
        scale: The `lambda` of recipes.
    """

    def __init__(
        self,
        name: str,
        base: int,
        weights: Sequence[float],
        pruners: Sequence[Pruner | None],
        count: int,
        elect: bool,
        normalize: bool,
        scale: float,
    ) -> None:
        self._name, self.base, self.scale = name, base, scale
        self.elects, self.normalize = elect, normalize
        total = math.fsum(weights)
        divide = normalize and not elect
        self.weights = [weight / total if divide and weight else weight for weight in weights]
        moved = [index for index, weight in enumerate(weights) if index != base and weight != 0]
        self.pruners = {index: pruner for index in moved if (pruner := pruners[index]) is not None}
        self._differences = count * len(moved)
        self.looks = max((pruner.passes for pruner in self.pruners.values()), default=0)

    @property
    def kept(self) -> tuple[int, int]:
        return sum(pruner.kept for pruner in self.pruners.values()), self._differences

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        looked(self.pruners, number, chunk, self.base)

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self.base]
        total = torch.zeros_like(base)
        for index, pruner in self.pruners.items():
            values = chunk[index].sub_(base)
            pruner.prune(values)
            total += values.mul_(self.weights[index] * pruner.scale)
        if self.elects:
            total = self.elected(chunk, total)
        return total.mul_(self.scale).add_(base)

    def elected(self, chunk: Sequence[Tensor], total: Tensor) -> Tensor:
        """The weighted differences that have the sign of their total, summed and divided by their weights."""
        sign = torch.ones_like(total).copysign_(total)  # a total is never -0: it began as 0
        change = torch.zeros_like(total)
        divisor = _Divisor(self._name, total) if self.normalize else None
        for index in self.pruners:
            # Whatever has the other sign becomes 0, which agrees with nobody.
            agreeing = chunk[index].mul_(sign).clamp_(min=0)
            change += agreeing
            if divisor is not None:
                divisor.add(agreeing, self.weights[index])
        change.mul_(sign).add_(0.0)  # of -0 it makes 0
        return change if divisor is None else divisor.divided(change)


class _Divisor:
    """The sum of the weights of those that agree, entry by entry; 1 where nobody does.

    Args:
        name: Of the tensor, for messages.
        like: As long as what is divided.
    """

    def __init__(self, name: str, like: Tensor) -> None:
        self._name = name
        self._weights = torch.zeros_like(like)
        self._sizes: Tensor | None = None  # of weights, once one is negative
        self._least = math.inf

    def add(self, agreeing: Tensor, weight: float) -> None:
        """Of those that agree, for which it is more than 0; what they hold is not kept."""
        agrees = agreeing.sign_()
        if weight < 0 and self._sizes is None:
            self._sizes = self._weights.clone()
        self._weights.add_(agrees, alpha=weight)
        if self._sizes is not None:
            self._sizes.add_(agrees, alpha=abs(weight))
        self._least = min(self._least, weight)

    def divided(self, change: Tensor) -> Tensor:
        """What is divided, where nobody agrees 0.

        Raises:
            InputError: Weights of those that agree sum to 0.
        """
        if self._sizes is None:  # a sum of positive weights is 0, or at least the smallest
            return change.div_(self._weights.clamp_(min=self._least))
        if bool(((self._weights.abs() <= _CANCELLED * self._sizes) & (self._sizes > 0)).any()):
            raise InputError(
                f"{self._name}: weights of differences of one sign sum to 0 and are to be normalised",
                "give weights of one sign, or normalize: false",
            )
        return change.div_(torch.where(self._sizes > 0, self._weights, torch.ones_like(self._weights)))
