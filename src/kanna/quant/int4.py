"""4-bit codes as torch's kernel for CPUs reads them: products in bfloat16 without a weight multiplied out.

The kernel computes x . (s (q - 8) + b), with s and b in bfloat16 for each row and each group of 32, 64, 128
or 256 inputs. Here b is s (8 - z) of the rounded s, so that a code at its zero-point is 0 but for the
rounding of b, which is none where 8 - z is 0 or a power of two. A weight is off by hardly more than
2^-8 |s| (|q - z| + |8 - z|); one that is multiplied out and then rounded to bfloat16 by up to 2^-8 |w|.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.quant.grid import Codes, Grid

_BITS, _MIDDLE = 4, 8
# Inputs of a group, and rows in which it goes through a matrix.
_GROUPS, _ROWS = (256, 128, 64, 32), 16
# How the kernel for other devices lays codes out, which that for CPUs is asked, too, and does not look at.
_TILES = 2
_MULTIPLY = torch.ops.aten._weight_int4pack_mm_for_cpu.default
_LAY_OUT = torch.ops.aten._convert_weight_to_int4pack_for_cpu.default


@dataclass(frozen=True)
class Int4:
    """A matrix (m, n) as the kernel reads it.

    Args:
        codes: In a layout of torch's own, which depends on the machine: never to be saved.
        scales: (groups, m, 2) bfloat16 s and b.
        group: Inputs of one.
    """

    codes: Tensor
    scales: Tensor
    group: int

    def product(self, x: Tensor) -> Tensor:
        """x (..., n) bfloat16 -> (..., m) bfloat16."""
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        y: Tensor = _MULTIPLY(flat, self.codes, self.group, self.scales)
        return y.view(*x.shape[:-1], y.shape[-1])


def group_of(grid: Grid, rows: int, columns: int) -> int | None:
    """Inputs of a group as the kernel is told them: those of the grid, or the most that divide them.

    None where the kernel cannot hold such a matrix: other bits, rows that no 16 divide, a short last group,
    groups that no 32 divide.
    """
    size = grid.size(columns)
    if grid.bits != _BITS or rows % _ROWS or columns % size:
        return None
    return next((group for group in _GROUPS if size % group == 0), None)


def laid_out(codes: Codes, group: int) -> Int4 | None:
    """Codes of a grid that `group_of` takes; None where the kernel would overflow on a scale."""
    scale = codes.scale.to(torch.bfloat16).float()
    if not (scale * 2 * _MIDDLE).isfinite().all():
        return None
    offset = scale * (_MIDDLE - codes.zero.float())
    times = codes.grid.size(codes.codes.shape[1]) // group
    both = torch.stack([scale, offset], -1).to(torch.bfloat16).repeat_interleave(times, 1)
    packed = _LAY_OUT(codes.codes.int().contiguous(), _TILES)
    return Int4(packed, both.transpose(0, 1).contiguous(), group)
