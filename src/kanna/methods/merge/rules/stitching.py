"""Localize-and-Stitch (He et al. 2024) without data: few entries of each, averaged where they overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kanna.methods.merge.rules.pruning import Pruner, looked


class Stitched:
    """base + scale sum(m d) / sum(m), with m = 1 where an entry is among the largest of its model, else 0.

    Args:
        base: Index of the base model.
        pruners: One for each model; None where nothing of it stays.
        count: Of the tensor's entries.
        scale: The `lambda` of recipes.
    """

    def __init__(self, base: int, pruners: Sequence[Pruner | None], count: int, scale: float) -> None:
        self._base, self._scale = base, scale
        self._pruners = {
            index: pruner for index, pruner in enumerate(pruners) if index != base and pruner is not None
        }
        self.kept = sum(one.kept for one in self._pruners.values()), count * (len(pruners) - 1)
        self.looks = max((one.passes for one in self._pruners.values()), default=0)

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        looked(self._pruners, number, chunk, self._base)

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self._base]
        total, counts = torch.zeros_like(base), torch.zeros_like(base)
        for index, pruner in self._pruners.items():
            values = chunk[index].sub_(base)
            stays = pruner.pick(values)
            total += values.mul_(stays)
            counts += stays
        return total.div_(counts.clamp_(min=1)).mul_(self._scale).add_(base)
