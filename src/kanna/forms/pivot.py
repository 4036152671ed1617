"""A rank-k matrix as k of its own rows and the mix that gives the others: smaller than two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from kanna.errors import InputError
from kanna.forms.base import Form, FormModule, Shape, Tensors, positive, product, register, sentinel

ORDER_DTYPE = torch.int32


@register("pivot")
@dataclass(frozen=True)
class Pivot(Form):
    """W (m, n) of rank k as basis (k, n), mix (m - k, k) and order (m,).

    W = cat(basis, mix @ basis)[order]. It counts k(m + n) - k^2 + m numbers, the order included.
    Source: the lossless pivoting row factorisation (PIFA, ICML 2025).
    """

    rank: int

    def __post_init__(self) -> None:
        positive("pivot", "rank", self.rank)

    def tensors(self, m: int, n: int, bias: bool = False) -> dict[str, Shape]:
        if self.rank > n or self.rank >= m:
            raise InputError(
                f"a pivot form of rank {self.rank} does not fit a matrix of {m} x {n}:"
                f" the rank must be below {m} and at most {n}"
            )
        shapes: dict[str, Shape] = {
            "weight": (1,),
            "basis.weight": (self.rank, n),
            "mix.weight": (m - self.rank, self.rank),
            "order": (m,),
        }
        return shapes | ({"bias": (m,)} if bias else {})

    def parameters(self, m: int, n: int) -> int:
        return self.rank * (m + n) - self.rank**2 + m

    def dtype_of(self, suffix: str, dtype: torch.dtype) -> torch.dtype:
        return ORDER_DTYPE if suffix == "order" else dtype

    def build(
        self,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> PivotLinear:
        return PivotLinear(n, m, self.rank, bias, dtype, device)

    def merge(self, tensors: Tensors) -> torch.Tensor:
        basis = tensors["basis.weight"]
        rows = torch.cat([basis, product(tensors["mix.weight"], basis)])
        return rows.index_select(0, tensors["order"])

    def pack(
        self, order: torch.Tensor, basis: torch.Tensor, mix: torch.Tensor, bias: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Suffix -> tensor to store, from order (m,), basis (k, n), mix (m - k, k) and bias (m,)."""
        tensors = {
            "weight": sentinel(basis),
            "basis.weight": basis,
            "mix.weight": mix,
            "order": order.to(ORDER_DTYPE),
        }
        return tensors | ({} if bias is None else {"bias": bias})


class PivotLinear(FormModule):
    """y = cat(h, mix(h))[order] + bias with h = basis(x)."""

    order: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(Pivot(rank), in_features, out_features, dtype, device)
        self.basis = nn.Linear(in_features, rank, bias=False, dtype=dtype, device=device)
        self.mix = nn.Linear(rank, out_features - rank, bias=False, dtype=dtype, device=device)
        self.register_buffer("order", torch.arange(out_features, dtype=ORDER_DTYPE, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n) -> (..., m)."""
        kept = self.basis(x)
        y = torch.cat([kept, self.mix(kept)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias
