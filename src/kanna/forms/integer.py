"""A matrix as whole numbers of a few bits, with a scale and a zero-point for each group of a row's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from kanna.errors import InputError
from kanna.forms import fast
from kanna.forms.base import Form, FormModule, Shape, Tensors, register
from kanna.quant.grid import Codes, Grid
from kanna.quant.int4 import Int4, group_of, laid_out
from kanna.quant.packing import words
from kanna.quant.scaled import changed, scaled_product

PACKED, SCALE, ZERO = "weight_packed", "weight_scale", "weight_zero_point"
# Of a module whose scales are changed: d in s (1 + d), float32 (m,) or (m, groups).
CHANGE = "scale_change"


class IntLinear(FormModule):
    """y = x W^T + bias with W = s (q - z), multiplied out for each product or by a kernel (`fast`).

    Its scales may be changed, s (1 + d): by `change`, and differently for each row of a batch by `by_row`.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    scale_change: nn.Parameter | None
    # While a change is learnt: keep inputs, since the model changes the outputs in place.
    keeps_inputs: bool = False
    # Whether time may decide which way a product goes: no, where equal input has to give equal bits.
    timed: bool = True
    row_changes: torch.Tensor | None

    def __init__(self, form: Int, *sizes_and_kind: Any) -> None:
        """Takes what `FormModule` does.

        Raises:
            InputError: The environment asks for a way of products that there is none of.
        """
        super().__init__(form, *sizes_and_kind)
        fast.forced()
        self._second, self._group = fast.Second(), group_of(form.grid, self.out_features, self.in_features)
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
        # Looked up where they lie: a decoded token has time for little else.
        rows, change = self._buffers["row_changes"], self._parameters[CHANGE]
        if rows is not None:
            return self._mixed(x, rows)
        if change is not None and change.requires_grad and torch.is_grad_enabled():
            return self._learnt(x, change)
        return self._product(x, self.bias)

    def kernel(self, x: torch.Tensor) -> Int4 | None:
        """What computes the outputs of x without multiplying the weight out; None where that is done."""
        if self._group is None or not fast.suits(x, self.in_features):
            return None
        # What is learnt is written to in ways that cannot be seen; what is offloaded must not stay in memory.
        change, force = self._parameters[CHANGE], fast.forced()
        if (change is not None and change.requires_grad) or "_hf_hook" in self.__dict__:
            return None
        tokens = x.numel() // self.in_features
        case = fast.Case.of(self.out_features, self.in_features, self._group, tokens)
        faster = force if force is not None else fast.known(case) if self.timed else False
        if faster is False:
            return None
        held = self._buffers
        copy = self._second.of((held[PACKED], held[SCALE], held.get(ZERO), change), self._laid_out)
        if copy is None or faster:
            return copy
        if fast.measured(case, partial(copy.product, x), partial(self._multiplied_out, x, None)):
            return copy
        self._second.drop()
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves and casts: the second copy is of what was here before."""
        self._second.drop()
        return super()._apply(fn, recurse)

    def _laid_out(self) -> Int4 | None:
        form: Any = self.form
        return laid_out(form.codes(self._stored(), self.in_features), int(self._group or 0))

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        kernel = self.kernel(x)
        if kernel is None:
            return self._multiplied_out(x, bias)
        y = kernel.product(x)
        return y if bias is None else y + bias.to(y.dtype)

    def _multiplied_out(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.linear(x, self._weight(x.dtype), bias)

    def _weight(self, dtype: torch.dtype) -> torch.Tensor:
        return self.form.dense(self._stored(), self.out_features, self.in_features, torch.float32).to(dtype)

    def _stored(self) -> dict[str, torch.Tensor]:
        """All that the weight is made of, with the change of its scales."""
        stored = dict(self.named_buffers(recurse=False))
        return stored if self.scale_change is None else {**stored, CHANGE: self.scale_change}

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
        y = self._product(x, None)
        y = y * (1 + changes).to(y.dtype).view(len(changes), *[1] * (x.dim() - 2), -1)
        return y if self.bias is None else y + self.bias


def untimed(model: nn.Module) -> None:
    """From here on equal input gives equal bits: what was faster does not decide how products are made."""
    for module in model.modules():
        if isinstance(module, IntLinear):
            module.timed = False


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
