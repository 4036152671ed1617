"""A matrix stored as it is. It appears inside other forms, for what nobody compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from kanna.forms.base import Form, Shape, Tensors, register


@register("dense")
@dataclass(frozen=True)
class Dense(Form):
    """An ordinary nn.Linear; no sentinel, since its weight has the shape that the name promises."""

    own_dtypes: ClassVar[Mapping[str, torch.dtype | None]] = {"weight": None}
    has_sentinel: ClassVar[bool] = False

    def own(self, m: int, n: int) -> dict[str, Shape]:
        return {"weight": (m, n)}

    def build(
        self,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> nn.Linear:
        return nn.Linear(n, m, bias=bias, dtype=dtype, device=device)

    def dense(self, tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
        return tensors["weight"].to(dtype)


# The default of nested forms.
DENSE = Dense()
