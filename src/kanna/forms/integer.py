"""A matrix as whole numbers of a few bits, with a scale and a zero-point for each group of a row's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from kanna.errors import InputError
from kanna.forms.base import Form, FormModule, Shape, Tensors, register
from kanna.quant.grid import Codes, Grid
from kanna.quant.packing import words
from kanna.quant.scaled import changed, scaled_product

PACKED, SCALE, ZERO = "weight_packed", "weight_scale", "weight_zero_point"
# Of a module whose scales are changed: d in s (1 + d), float32 (m,) or (m, groups).
CHANGE = "scale_change"


class IntLinear(FormModule):
    """y = x W^T + bias with W = s (q - z), multiplied out for the time of the product.

    Its scales may be changed, s (1 + d): by `change`, and differently for each row of a batch by `by_row`.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    scale_change: nn.Parameter | None
    # While a change is learnt: keep inputs, since the model changes the outputs in place.
    keeps_inputs: bool = False
    row_changes: torch.Tensor | None

    def __init__(self, form: Int, *sizes_and_kind: Any) -> None:
        """Takes what `FormModule` does."""
        super().__init__(form, *sizes_and_kind)
        self.register_parameter(CHANGE, None)
        self.register_buffer("row_changes", None, persistent=False)

    def change(self, by: torch.Tensor | None, learn: bool = False) -> None:
        """Change the scales by d; None takes the change away.

        Args:
            by: (m,) or (m, groups).
            learn: Whether d gets gradients.

        Raises:
            InputError: The model was cast, and its scales with it: they are not those of the file any more.
        """
        if by is not None and self.weight_scale.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"the scales of this model were cast to {self.weight_scale.dtype}".replace("torch.", ""),
                "load it anew, with dtype= in place of .half() or .to(): then its scales stay float32",
            )
        held = None if by is None else by.detach().to(self.weight_scale.device, torch.float32).clone()
        self.scale_change = None if held is None else nn.Parameter(held, requires_grad=learn)

    def by_row(self, changes: torch.Tensor | None) -> None:
        """(rows of a batch, m) changes of channels, one for each row; None takes them away."""
        self.row_changes = None if changes is None else changes.detach().to(self.weight_scale.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n) -> (..., m)."""
        if self.row_changes is not None:
            return self._mixed(x, self.row_changes)
        change = self.scale_change
        if change is not None and change.requires_grad and torch.is_grad_enabled():
            return self._learnt(x, change)
        return functional.linear(x, self._weight(x.dtype), self.bias)

    def _weight(self, dtype: torch.dtype) -> torch.Tensor:
        stored = dict(self.named_buffers(recurse=False))
        if self.scale_change is not None:
            stored[CHANGE] = self.scale_change
        return self.form.dense(stored, self.out_features, self.in_features, torch.float32).to(dtype)

    def _learnt(self, x: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """The same with gradients of the change, for which nothing dense is kept."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        form: Any = self.form
        zero = getattr(self, ZERO, None)
        stored = self.weight_packed, self.weight_scale, zero, form.grid
        y = scaled_product(x, change, *stored, keep_inputs=self.keeps_inputs and self.bias is None)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _mixed(self, x: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
        """Each row of the batch with scales of its own: a change of channels only multiplies outputs."""
        # Two dimensions are tokens of all rows together, as experts read them, even where the numbers agree.
        if x.dim() < 3 or len(x) != len(changes):
            raise InputError(
                f"a layer reads {list(x.shape)}, which are not {len(changes)} rows of a batch",
                "give as many rows as sets; models that route tokens of all rows together take one set",
            )
        y = functional.linear(x, self._weight(x.dtype))
        y = y * (1 + changes).to(y.dtype).view(len(changes), *[1] * (x.dim() - 2), -1)
        return y if self.bias is None else y + self.bias


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

    def scale(self, tensors: Tensors) -> torch.Tensor:
        """(m, groups) scales, with the change of a module where it has one."""
        change, scale = tensors.get(CHANGE), tensors[SCALE]
        return scale if change is None else changed(scale, change)

    def codes(self, tensors: Tensors, n: int) -> Codes:
        """The matrix of n inputs as it is stored, with its scales as `scale` gives them."""
        return Codes.of(self.grid, tensors[PACKED], self.scale(tensors), tensors.get(ZERO), n)

    def dense(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
        return self.codes(tensors, n).weight.to(dtype)
