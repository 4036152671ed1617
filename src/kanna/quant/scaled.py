"""A product with whole numbers whose scales are learnt: nothing dense is kept between the two passes.

w = s (1 + d) v with v = q - z, and d for each row (channel) or each group of a row. Kept for the way back are
the packed codes, which are there anyway, and activations: of channels the outputs, since the gradient of d is
their product with the incoming one, sum_t g y / (1 + d); of groups the inputs, and of channels too where a
model changes the outputs in place. Weights are multiplied out again, a few rows at a time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kanna.quant.grid import Codes, Grid

# Weights that are multiplied out at once on the way back.
_AT_ONCE = 1 << 22
# Where 1 + d is smaller than this, outputs do not tell what they would be without it.
_VANISHING = 1e-3


def changed(scale: Tensor, change: Tensor) -> Tensor:
    """Scales (m, groups) times 1 + d, where d is (m,) or (m, groups)."""
    return scale * (1 + (change[:, None] if change.dim() == 1 else change))


def scaled_product(
    x: Tensor,
    change: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    grid: Grid,
    keep_inputs: bool = False,
) -> Tensor:
    """y (..., m) = x (..., n) W^T, with gradients of x and of `change` alone.

    Args:
        change: d; (m,) of channels, (m, groups) of groups.
        packed: Codes as they are stored.
        scale: (m, groups), before the change.
        zero: (m, groups); None on a symmetric grid.
        keep_inputs: Of channels, too: for outputs that somebody changes in place.
    """
    by_input = keep_inputs or change.dim() == 2
    y: Tensor = _Scaled.apply(x, change, packed, scale, zero, grid, by_input)
    return y


class _Scaled(torch.autograd.Function):
    """See above."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        change: Tensor,
        packed: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        grid: Grid,
        by_input: bool,
    ) -> Tensor:
        weight = Codes.of(grid, packed, changed(scale, change), zero, x.shape[-1]).weight
        y = functional.linear(x, weight.to(x.dtype))
        ctx.grid, ctx.columns, ctx.by_input = grid, x.shape[-1], by_input
        lost, kept = None, None
        if ctx.needs_input_grad[1]:
            kept = x if by_input else y
            if not by_input:
                lost = _without_change(x, change, packed, scale, zero, grid)
        ctx.save_for_backward(kept, lost, change, packed, scale, zero)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        kept, lost, change, packed, scale, zero = ctx.saved_tensors
        flat = g.reshape(-1, g.shape[-1])
        to_x, to_change = ctx.needs_input_grad[:2]
        by_input = to_change and ctx.by_input
        inputs = _wide(kept.reshape(-1, ctx.columns)) if by_input else None
        dx = _wide(flat.new_zeros(len(flat), ctx.columns)) if to_x else None
        parts: list[Tensor] = []
        if to_x or by_input:
            for rows in _chunks(len(packed), ctx.columns):
                some = None if zero is None else zero[rows]
                codes = Codes.of(ctx.grid, packed[rows], scale[rows], some, ctx.columns)
                if dx is not None:
                    new = changed(codes.scale, change[rows])
                    weight = codes.steps * ctx.grid.spread(new, ctx.columns)
                    dx += flat[:, rows] @ weight.to(g.dtype)
                if inputs is not None:
                    outer = _wide(flat[:, rows]).T @ inputs
                    groups = codes.scale * ctx.grid.sums(outer * codes.steps)
                    parts.append(groups if change.dim() == 2 else groups.sum(1))
        dd = torch.cat(parts) if parts else None
        if to_change and not by_input:
            dd = _of_channels(flat, kept.reshape(flat.shape), lost, change)
        shaped = None if dx is None else dx.to(g.dtype).view(*g.shape[:-1], ctx.columns)
        return shaped, None if dd is None else dd.to(change.dtype), *[None] * 5


def _of_channels(g: Tensor, y: Tensor, lost: Tensor | None, change: Tensor) -> Tensor:
    """(m,) sum_t g u, where u is the output without the change."""
    factor = 1 + change
    found = torch.einsum("to,to->o", _wide(g), _wide(y)) / factor
    if lost is not None:
        near = _near(change)
        found[near] = torch.einsum("to,to->o", _wide(g[:, near]), _wide(lost))
    return found


def _near(change: Tensor) -> Tensor:
    """Rows whose scales nearly vanish."""
    return ((1 + change).abs() < _VANISHING).nonzero().flatten()


def _without_change(
    x: Tensor, change: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid
) -> Tensor | None:
    """(tokens, rows) outputs, as they were before the change, of rows whose scales nearly vanish."""
    near = _near(change)
    if not len(near):
        return None
    some = None if zero is None else zero[near]
    weight = Codes.of(grid, packed[near], scale[near], some, x.shape[-1]).weight
    return functional.linear(x.reshape(-1, x.shape[-1]), weight.to(x.dtype))


def _wide(values: Tensor) -> Tensor:
    """In float32 or better: sums over many tokens are made in it."""
    return values if values.dtype == torch.float64 else values.float()


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    some = max(1, _AT_ONCE // columns)
    for start in range(0, rows, some):
        yield slice(start, min(rows, start + some))
