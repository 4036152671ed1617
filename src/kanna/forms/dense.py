"""A matrix stored as it is. It appears inside other forms, for the rows that nobody compressed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from kanna.forms.base import Form, Shape, Tensors, register


@register("dense")
@dataclass(frozen=True)
class Dense(Form):
    """An ordinary nn.Linear; no sentinel, since its weight has the shape that the name promises."""

    def tensors(self, m: int, n: int, bias: bool = False) -> dict[str, Shape]:
        return {"weight": (m, n)} | ({"bias": (m,)} if bias else {})

    def parameters(self, m: int, n: int) -> int:
        return m * n

    def build(
        self,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> nn.Linear:
        return nn.Linear(n, m, bias=bias, dtype=dtype, device=device)

    def merge(self, tensors: Tensors) -> torch.Tensor:
        return tensors["weight"]

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Suffix -> tensor to store, from the (m, n) weight and the (m,) bias."""
        return {"weight": weight} | ({} if bias is None else {"bias": bias})
