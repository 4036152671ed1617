"""A rank-k matrix as k of its own rows and the mix that gives the others: smaller than two factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from kanna.errors import InputError
from kanna.forms.base import DENSE, Child, Form, FormModule, Shape, Tensors, positive, register


class PivotLinear(FormModule):
    """y = cat(h, mix(h))[order] + bias with h = basis(x)."""

    basis: nn.Module
    mix: nn.Module
    order: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n) -> (..., m)."""
        kept = self.basis(x)
        y = torch.cat([kept, self.mix(kept)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias


@register("pivot")
@dataclass(frozen=True)
class Pivot(Form):
    """W (m, n) of rank k as basis (k, n), mix (m - k, k) and order (m,).

    W = cat(basis, mix @ basis)[order]. It counts k(m + n) - k^2 + m numbers, the order included, where
    basis and mix are dense.
    Source: the lossless pivoting row factorisation (PIFA, ICML 2025).

    Args:
        rank: k.
        basis: How the (k, n) rows are stored.
        mix: How the (m - k, k) matrix is stored.
    """

    rank: int
    basis: Form = DENSE
    mix: Form = DENSE
    module: ClassVar[type[FormModule]] = PivotLinear

    def __post_init__(self) -> None:
        positive("pivot", "rank", self.rank)
        super().__post_init__()

    def children(self, m: int, n: int) -> dict[str, Child]:
        if self.rank > n or self.rank >= m:
            raise InputError(
                f"a pivot form of rank {self.rank} does not fit a matrix of {m} x {n}:"
                f" the rank must be below {m} and at most {n}"
            )
        return {"basis": Child(self.basis, self.rank, n), "mix": Child(self.mix, m - self.rank, self.rank)}

    @property
    def own_dtypes(self) -> Mapping[str, torch.dtype | None]:
        return {"order": torch.int32}

    def own(self, m: int, n: int) -> dict[str, Shape]:
        return {"order": (m,)}

    def dense(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
        factors = self.dense_children(tensors, m, n, dtype)
        rows = torch.cat([factors["basis"], factors["mix"] @ factors["basis"]])
        return rows.index_select(0, tensors["order"])
