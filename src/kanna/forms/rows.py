"""A fused matrix of which slices of rows have forms of their own, such as q, k and v in one parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kanna.errors import InputError
from kanna.forms.base import Form, FormModule, Shape, Tensors, from_json, register, sentinel

Slice = tuple[int, int, int, int]
Part = tuple[Slice, Form]


@register("rows")
@dataclass(frozen=True)
class Rows(Form):
    """Slices of rows, each in a form of its own; together they are every row once.

    Args:
        parts: ((start, block, stride, count), form) pairs. A slice holds the rows
            start + i * stride + j for i < count and j < block, in that order.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("a rows form needs at least one part")
        for where, form in self.parts:
            _check_slice(where)
            if isinstance(form, Rows):
                raise InputError("a rows form cannot be a part of a rows form")

    def sizes(self) -> list[int]:
        """Rows of each part."""
        return [block * count for (_, block, _, count), _ in self.parts]

    def tensors(self, m: int, n: int, bias: bool = False) -> dict[str, Shape]:
        _check_cover(self.parts, m)
        shapes: dict[str, Shape] = {"weight": (1,)}
        for i, (size, (_, form)) in enumerate(zip(self.sizes(), self.parts, strict=True)):
            shapes |= {f"parts.{i}.{name}": shape for name, shape in form.tensors(size, n).items()}
        return shapes | ({"bias": (m,)} if bias else {})

    def parameters(self, m: int, n: int) -> int:
        return sum(form.parameters(size, n) for size, (_, form) in zip(self.sizes(), self.parts, strict=True))

    def dtype_of(self, suffix: str, dtype: torch.dtype) -> torch.dtype:
        if not suffix.startswith("parts."):
            return dtype
        _, index, rest = suffix.split(".", 2)
        return self.parts[int(index)][1].dtype_of(rest, dtype)

    def build(
        self,
        m: int,
        n: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> RowsLinear:
        return RowsLinear(n, m, self.parts, bias, dtype, device)

    def merge(self, tensors: Tensors) -> torch.Tensor:
        blocks = [form.merge(_below(tensors, f"parts.{i}.")) for i, (_, form) in enumerate(self.parts)]
        order = _gather_order([where for where, _ in self.parts], device=blocks[0].device)
        return torch.cat(blocks).index_select(0, order)

    def pack(
        self, parts: Sequence[Mapping[str, torch.Tensor]], bias: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Suffix -> tensor to store, from what `pack` of each part's form gave, and the (m,) bias."""
        tensors = {f"parts.{i}.{name}": t for i, part in enumerate(parts) for name, t in part.items()}
        floating = next(t for t in tensors.values() if t.is_floating_point())
        return {"weight": sentinel(floating)} | tensors | ({} if bias is None else {"bias": bias})

    def to_json(self) -> dict[str, Any]:
        parts = [{"rows": list(where), "form": form.to_json()} for where, form in self.parts]
        return {"form": self.key, "parts": parts}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Rows:
        if set(fields) != {"parts"} or not isinstance(fields["parts"], list):
            raise InputError(f"a rows form has one key, 'parts', a list; found {sorted(fields)}")
        return cls(tuple(_part_from_json(part) for part in fields["parts"]))


class RowsLinear(FormModule):
    """The parts' outputs, each in its rows, plus the bias of the whole."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        parts: tuple[Part, ...],
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        form = Rows(parts)
        _check_cover(parts, out_features)
        super().__init__(form, in_features, out_features, dtype, device)
        built = [
            part.build(size, in_features, False, dtype, device)
            for size, (_, part) in zip(form.sizes(), parts, strict=True)
        ]
        self.parts = nn.ModuleList(built)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        self._slices = [where for where, _ in parts]
        self._periods = _periods(self._slices)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n) -> (..., m)."""
        outputs = [part(x) for part in self.parts]
        y = self._in_place(outputs)
        return y if self.bias is None else y + self.bias

    def _in_place(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        if self._periods is None:
            order = _gather_order(self._slices, outputs[0].device)
            return torch.cat(outputs, dim=-1).index_select(-1, order)
        if self._periods.count == 1:
            return torch.cat([outputs[i] for i in self._periods.order], dim=-1)
        blocks = [outputs[i].unflatten(-1, (self._periods.count, -1)) for i in self._periods.order]
        return torch.cat(blocks, dim=-1).flatten(-2)


@dataclass(frozen=True)
class _Periods:
    """Slices that alternate: `count` periods, each holding one block of every part in `order`."""

    order: tuple[int, ...]
    count: int


def _periods(slices: Sequence[Slice]) -> _Periods | None:
    """The alternation of the slices (one period: simply one after another), or None where there is none."""
    order = sorted(range(len(slices)), key=lambda i: slices[i][0])
    counts = {count for *_, count in slices}
    if len(counts) > 1:
        return None
    count, expected = counts.pop(), 0
    period = sum(block for _, block, _, _ in slices)
    for i in order:
        start, block, stride, _ = slices[i]
        if start != expected or (count > 1 and stride != period):
            return None
        expected += block
    return _Periods(tuple(order), count)


def _row_numbers(where: Slice) -> torch.Tensor:
    start, block, stride, count = where
    # On the CPU by name: models are built with the meta device as the default.
    first, within = torch.arange(count, device="cpu"), torch.arange(block, device="cpu")
    return (start + first[:, None] * stride + within).reshape(-1)


def _gather_order(slices: Sequence[Slice], device: torch.device) -> torch.Tensor:
    """(m,) int64: row r of the whole is row order[r] of the concatenated parts."""
    return torch.cat([_row_numbers(where) for where in slices]).argsort().to(device)


def _check_slice(where: Slice) -> None:
    if len(where) != 4 or any(not isinstance(v, int) or isinstance(v, bool) for v in where):
        raise InputError(f"rows of a part must be four whole numbers, found {where!r}")
    start, block, stride, count = where
    if start < 0 or block < 1 or count < 1 or (count > 1 and stride < block):
        raise InputError(f"rows [start, block, stride, count] = {list(where)} are not a slice of rows")


def _check_cover(parts: Sequence[Part], m: int) -> None:
    """Every row of m exactly once; checked on the numbers first, so that a wild count allocates nothing."""
    held = sum(block * count for (_, block, _, count), _ in parts)
    if held == m:
        rows = torch.cat([_row_numbers(where) for where, _ in parts])
        if torch.equal(rows.sort().values, torch.arange(m, device="cpu")):
            return
    raise InputError(f"the parts of a rows form must hold each of {m} rows once; they hold {held} rows")


def _part_from_json(part: object) -> Part:
    if not isinstance(part, Mapping) or set(part) != {"rows", "form"} or not isinstance(part["rows"], list):
        raise InputError(f"a part of a rows form has the keys 'rows' (a list) and 'form', found {part!r}")
    return tuple(part["rows"]), from_json(part["form"])


def _below(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
