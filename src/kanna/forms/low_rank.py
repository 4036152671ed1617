"""A matrix as the product of two factors: y = expand(reduce(x))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from kanna.errors import InputError
from kanna.forms.base import Form, FormModule, Shape, Tensors, positive, product, register, sentinel


@register("low_rank")
@dataclass(frozen=True)
class LowRank(Form):
    """W (m, n) ~ expand (m, k) @ reduce (k, n) with k = rank; stored as two ordinary linear layers."""

    rank: int
    bias_suffix: ClassVar[str] = "expand.bias"

    def __post_init__(self) -> None:
        positive("low_rank", "rank", self.rank)

    def tensors(self, m: int, n: int, bias: bool = False) -> dict[str, Shape]:
        if self.rank > min(m, n):
            raise InputError(f"rank {self.rank} is more than a matrix of {m} x {n} can have")
        shapes: dict[str, Shape] = {
            "weight": (1,),
            "reduce.weight": (self.rank, n),
            "expand.weight": (m, self.rank),
        }
        return shapes | ({"expand.bias": (m,)} if bias else {})

    def parameters(self, m: int, n: int) -> int:
        return self.rank * (m + n)

    def build(
        self,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> LowRankLinear:
        return LowRankLinear(n, m, self.rank, bias, dtype, device)

    def merge(self, tensors: Tensors) -> torch.Tensor:
        return product(tensors["expand.weight"], tensors["reduce.weight"])

    def pack(
        self, expand: torch.Tensor, reduce: torch.Tensor, bias: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Suffix -> tensor to store, from expand (m, k), reduce (k, n) and the (m,) bias."""
        tensors = {"weight": sentinel(reduce), "reduce.weight": reduce, "expand.weight": expand}
        return tensors | ({} if bias is None else {"expand.bias": bias})


class LowRankLinear(FormModule):
    """y = expand(reduce(x)): `reduce` is nn.Linear n -> rank without bias, `expand` nn.Linear rank -> m."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(LowRank(rank), in_features, out_features, dtype, device)
        self.reduce = nn.Linear(in_features, rank, bias=False, dtype=dtype, device=device)
        self.expand = nn.Linear(rank, out_features, bias=bias, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n) -> (..., m)."""
        return self.expand(self.reduce(x))
