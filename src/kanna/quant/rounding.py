"""Scales and zero-points from the weights alone.

    minmax   the grid just holds the smallest and the largest weight of a group
    mse      of that range, as much as makes the squared error of a group smallest
    hqq      zero-points that make many errors small and let some be large (Badri & Shaji 2023): alternately
             the errors e = shrink(w - s (q - z)) that are let go, and z = mean(q - (w - e) / s); at last z is
             rounded, since grids are of whole numbers here, and taken where that is better than before.
             Then it can only move the ends of the grid, not its points: little is left of the method

A weight error says little of the loss: which is the best is measured, see docs/peqa.md.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.quant.grid import Codes, Grid, between, rounded

Rounding = Literal["minmax", "mse", "hqq"]

# Shares of the range that mse tries.
_SHARES = tuple(1 - step / 50 for step in range(41))
# Of hqq: the norm, how dear errors are at first and by how much dearer with each turn, and the most turns.
_NORM, _PRICE, _DEARER, _TURNS = 0.7, 10.0, 1.01, 20
# Numbers of a weight looked at together; what a turn needs in memory is a few times that.
_AT_A_TIME = 1 << 22


def quantised(weight: Tensor, grid: Grid, rounding: Rounding) -> Codes:
    """A weight (m, n) on a grid.

    Raises:
        InputError: hqq of whole rows, where it fails: too much lies on one zero-point.
    """
    if rounding == "hqq" and grid.group is None:
        raise InputError("hqq does not work with one group a row", "give a group size, or another method")
    parts = [_FOUND[rounding](rows, grid) for rows in _some_rows(weight)]
    codes, scale, zero = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scale", "zero")
    )
    return Codes(grid, codes, scale, zero)


def squared_error(weight: Tensor, codes: Codes) -> Tensor:
    """(m, groups) float32."""
    return codes.grid.sums((weight.float() - codes.weight).square())


def _some_rows(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.float().split(max(1, _AT_A_TIME // weight.shape[1]))


def _range(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(m, groups) smallest and largest, 0 among them."""
    groups = grid.grouped(weight)
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def _minmax(weight: Tensor, grid: Grid) -> Codes:
    return rounded(weight, *between(*_range(weight, grid), grid), grid)


def _mse(weight: Tensor, grid: Grid) -> Codes:
    low, high = _range(weight, grid)
    best_scale, best_zero = between(low, high, grid)
    least = squared_error(weight, rounded(weight, best_scale, best_zero, grid))
    for share in _SHARES[1:]:
        scale, zero = between(share * low, share * high, grid)
        error = squared_error(weight, rounded(weight, scale, zero, grid))
        better = error < least
        least = torch.where(better, error, least)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return rounded(weight, best_scale, best_zero, grid)


def _hqq(weight: Tensor, grid: Grid) -> Codes:
    scale, zero = between(*_range(weight, grid), grid)
    if grid.symmetric:
        return rounded(weight, scale, zero, grid)
    present = _present(weight, grid)
    moved = _zero_points(grid.grouped(weight), scale[..., None], zero[..., None], present, grid)
    sizes = [_in_its_norm(weight, rounded(weight, scale, each, grid)) for each in (moved, zero)]
    return rounded(weight, scale, torch.where(sizes[0] < sizes[1], moved, zero), grid)


def _in_its_norm(weight: Tensor, codes: Codes) -> Tensor:
    """(m, groups) sums of |error|^p."""
    return codes.grid.sums((weight - codes.weight).abs().pow(_NORM))


def _zero_points(weight: Tensor, scale: Tensor, zero: Tensor, present: Tensor, grid: Grid) -> Tensor:
    """(m, groups) whole zero-points of weights (m, groups, size), found with fractional ones.

    Args:
        present: (groups, size) which places of a short last group there are.
    """
    price, least, best = _PRICE, torch.inf, zero
    count = present.sum(-1)[None, :, None]
    for _ in range(_TURNS):
        codes = (weight / scale + zero).round().clamp_(0, grid.top)
        off = weight - scale * (codes - zero)
        error = float((off.abs() * present).mean())
        if error >= least:
            break
        least, best = error, zero
        let_go = _shrunk(off, price)
        zero = ((codes - (weight - let_go) / scale) * present).sum(-1, keepdim=True) / count
        price *= _DEARER
    return best[..., 0].round().clamp(0, grid.top)


def _shrunk(off: Tensor, price: float) -> Tensor:
    """The nearest point to `off` under |e|^p / price."""
    size = off.abs()
    less = size.clamp(min=torch.finfo(torch.float32).tiny).pow(_NORM - 1) / price
    return off.sign() * (size - less).clamp_(min=0)


def _present(weight: Tensor, grid: Grid) -> Tensor:
    return grid.grouped(torch.ones(1, weight.shape[1], device=weight.device))[0]


_FOUND: dict[str, Callable[[Tensor, Grid], Codes]] = {"minmax": _minmax, "mse": _mse, "hqq": _hqq}
