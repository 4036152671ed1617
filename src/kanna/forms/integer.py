"""A matrix as whole numbers of a few bits, with a scale and a zero-point for each group of a row's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch.nn import functional

from kanna.forms.base import Form, FormModule, Shape, Tensors, register
from kanna.quant.grid import Codes, Grid
from kanna.quant.packing import words

PACKED, SCALE, ZERO = "weight_packed", "weight_scale", "weight_zero_point"


class IntLinear(FormModule):
    """y = x W^T + bias with W = s (q - z), multiplied out for the time of the product."""

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n) -> (..., m)."""
        stored = dict(self.named_buffers(recurse=False))
        weight = self.form.dense(stored, self.out_features, self.in_features, torch.float32)
        return functional.linear(x, weight.to(x.dtype), self.bias)


@register("int")
@dataclass(frozen=True)
class Int(Form):
    """W (m, n) = s (q - z) with q in 0 .. 2^bits - 1, stored by the names of compressed-tensors.

    `weight_packed` (m, ceil(n bits / 32)) int32, `weight_scale` (m, groups) float32 whatever the dtype of the
    model, `weight_zero_point` (m, groups) uint8 unless symmetric.

    Args:
        bits: Of a code.
        group: Inputs that share a scale, the last group of a row may be short; None for all of a row.
        symmetric: Whether z is 2^(bits - 1) everywhere, and not stored.
    """

    bits: int
    group: int | None = None
    symmetric: bool = False
    module: ClassVar[type[FormModule]] = IntLinear

    def __post_init__(self) -> None:
        _ = self.grid
        super().__post_init__()

    @cached_property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group, self.symmetric)

    @property
    def own_dtypes(self) -> Mapping[str, torch.dtype | None]:
        stored: dict[str, torch.dtype | None] = {PACKED: torch.int32, SCALE: torch.float32}
        return stored if self.symmetric else {**stored, ZERO: torch.uint8}

    def own(self, m: int, n: int) -> dict[str, Shape]:
        groups = self.grid.groups(n)
        shapes = {PACKED: (m, words(n, self.bits)), SCALE: (m, groups), ZERO: (m, groups)}
        return {name: shapes[name] for name in self.own_dtypes}

    def parameters(self, m: int, n: int) -> int:
        """Weights that it stands for: how many bits each takes is told by `bytes`."""
        return m * n

    def codes(self, tensors: Tensors, n: int) -> Codes:
        """The matrix of n inputs as it is stored."""
        return Codes.of(self.grid, tensors[PACKED], tensors[SCALE], tensors.get(ZERO), n)

    def dense(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
        return self.codes(tensors, n).weight.to(dtype)
