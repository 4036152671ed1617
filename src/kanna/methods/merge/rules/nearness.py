"""Entries of another model that are near those of the base take their place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class NearSwap:
    """base + s (x - base), s = min(1, t / |x - base|): no entry moves by more than t.

    Args:
        base: Index of the base model, of two.
        t: In the unit of weights.
    """

    kept = (0, 0)
    looks = 0

    def __init__(self, base: int, t: float) -> None:
        self._base, self._t = base, t

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        raise AssertionError("each entry is mixed by itself")

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base, other = chunk[self._base], chunk[1 - self._base]
        change = other - base
        near = change.abs() <= self._t
        return torch.where(near, other, base + change.sign() * self._t)
