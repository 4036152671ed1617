"""A fused matrix of which slices of rows have forms of their own, such as q, k and v in one parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from kanna.errors import InputError
from kanna.forms.base import Child, Form, FormModule, Tensors, from_json, register

Slice = tuple[int, int, int, int]
Part = tuple[Slice, Form]


class RowsLinear(FormModule):
    """The parts' outputs, each in its rows, plus the bias of the whole."""

    parts: nn.ModuleList

    def __init__(self, form: Rows, *sizes_and_kind: Any) -> None:
        """Takes what `FormModule` does."""
        super().__init__(form, *sizes_and_kind)
        self._slices = [where for where, _ in form.parts]
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


@register("rows")
@dataclass(frozen=True)
class Rows(Form):
    """Slices of rows, each in a form of its own; together they are every row once.

    Args:
        parts: ((start, block, stride, count), form) pairs. A slice holds the rows
            start + i * stride + j for i < count and j < block, in that order.
    """

    parts: tuple[Part, ...]
    module: ClassVar[type[FormModule]] = RowsLinear

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("a rows form needs at least one part")
        for where, form in self.parts:
            _check_slice(where)
            if isinstance(form, Rows):
                raise InputError("a rows form cannot be a part of a rows form")
        super().__post_init__()

    @property
    def nested(self) -> Mapping[str, Form]:
        return {f"parts.{i}": form for i, (_, form) in enumerate(self.parts)}

    def children(self, m: int, n: int) -> dict[str, Child]:
        _check_cover(self.parts, m)
        sizes = [block * count for (_, block, _, count), _ in self.parts]
        return {
            name: Child(form, size, n) for size, (name, form) in zip(sizes, self.nested.items(), strict=True)
        }

    def dense(self, tensors: Tensors, m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
        return self.gathered(list(self.dense_children(tensors, m, n, dtype).values()))

    def gathered(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor (rows of the whole, ...) from those of the parts, each with the rows of its part."""
        blocks = torch.cat(list(values))
        return blocks.index_select(0, _gather_order([where for where, _ in self.parts], blocks.device))

    def to_json(self) -> dict[str, Any]:
        parts = [{"rows": list(where), "form": form.to_json()} for where, form in self.parts]
        return {"form": self.key, "parts": parts}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Rows:
        if set(fields) != {"parts"} or not isinstance(fields["parts"], list):
            raise InputError(f"a rows form has one key, 'parts', a list; found {sorted(fields)}")
        return cls(tuple(_part_from_json(part) for part in fields["parts"]))


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
