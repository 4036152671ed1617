"""RAM (reinforced agent merging): what one model alone changed is kept whole, what several did is averaged.

An entry counts as changed by a model where its difference from the base is larger than `epsilon`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ram:
    """base + sum(l d) / (models that changed the entry), over these.

    l is 1 but for RAM+ on entries that one model alone has changed, where it is 1 + r min(shared / unique,
    alpha), with how many entries that model shares with others and has to itself in this tensor.

    Args:
        base: Index of the base model.
        models: How many tensors there are, the base among them.
        epsilon: Differences up to this size are none.
        gain: r; 0 for RAM.
        most: alpha.
    """

    def __init__(self, base: int, models: int, epsilon: float, gain: float = 0.0, most: float = 0.0) -> None:
        self._base, self._epsilon, self._gain, self._most = base, epsilon, gain, most
        self._others = [index for index in range(models) if index != base]
        self._shared, self._unique = dict.fromkeys(self._others, 0), dict.fromkeys(self._others, 0)
        self._kept = self._count = 0
        self.looks = 1 if gain and most else 0

    @property
    def kept(self) -> tuple[int, int]:
        return self._kept, self._count

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        changed, counts = self._changed([chunk[index] - chunk[self._base] for index in self._others])
        for index, mask in zip(self._others, changed, strict=True):
            alone = int((mask & (counts == 1)).sum())
            self._unique[index] += alone
            self._shared[index] += int(mask.sum()) - alone

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self._base]
        differences = [chunk[index].sub_(base) for index in self._others]
        changed, counts = self._changed(differences)
        total = torch.zeros_like(base)
        for index, values, mask in zip(self._others, differences, changed, strict=True):
            values *= mask
            if self.looks:
                values[counts == 1] *= self._stretch(index)
            total += values
        self._kept += int(counts.sum())
        self._count += counts.numel() * len(differences)
        return total.div_(counts.clamp_(min=1)).add_(base)

    def _changed(self, differences: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Of each model, which entries it changed; of each entry, how many models did."""
        changed = [values.abs() > self._epsilon for values in differences]
        counts = torch.zeros_like(changed[0], dtype=torch.int32)
        for mask in changed:
            counts += mask
        return changed, counts

    def _stretch(self, index: int) -> float:
        alone = self._unique[index]
        ratio = self._shared[index] / alone if alone else 0.0
        return 1 + self._gain * min(ratio, self._most)
