"""A matrix as the product of two factors: y = expand(reduce(x))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from kanna.errors import InputError
from kanna.forms.base import DENSE, Child, Form, FormModule, Tensors, positive, register


class LowRankLinear(FormModule):
    """y = expand(reduce(x)): `reduce` takes n -> rank without bias, `expand` rank -> m."""

    reduce: nn.Module
    expand: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n) -> (..., m)."""
        return self.expand(self.reduce(x))


@register("low_rank")
@dataclass(frozen=True)
class LowRank(Form):
    """W (m, n) ~ expand (m, k) @ reduce (k, n) with k = rank; by default two ordinary linear layers.

    Args:
        rank: k.
        reduce: How the (k, n) factor is stored.
        expand: How the (m, k) factor is stored; the bias is its bias.
    """

    rank: int
    reduce: Form = DENSE
    expand: Form = DENSE
    module: ClassVar[type[FormModule]] = LowRankLinear
    bias_child: ClassVar[str | None] = "expand"

    def __post_init__(self) -> None:
        positive("low_rank", "rank", self.rank)
        super().__post_init__()

    def children(self, m: int, n: int) -> dict[str, Child]:
        if self.rank > min(m, n):
            raise InputError(f"rank {self.rank} is more than a matrix of {m} x {n} can have")
        return {"reduce": Child(self.reduce, self.rank, n), "expand": Child(self.expand, m, self.rank)}

    def dense(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
        factors = self.dense_children(tensors, m, n, dtype)
        return factors["expand"] @ factors["reduce"]
