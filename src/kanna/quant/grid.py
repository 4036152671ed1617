"""What codes mean: w = s (q - z), with a scale and a zero-point for each group of a row's inputs.

Groups are runs of `group` inputs; the last one is short where they do not divide a row, and a row is one
group where there is no group size. On a symmetric grid z is 2^(bits - 1) everywhere and not stored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kanna.errors import InputError
from kanna.quant.packing import MOST_BITS, pack, unpack

LEAST_BITS = 2


@dataclass(frozen=True)
class Grid:
    """The codes that there are.

    Args:
        bits: Of a code; 2 to 8.
        group: Inputs that share a scale; None for all of a row.
        symmetric: Whether the zero-point is always the middle.

    Raises:
        InputError: Bits or a group size out of range.
    """

    bits: int
    group: int | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not LEAST_BITS <= self.bits <= MOST_BITS:
            raise InputError(f"{self.bits} bits", f"give {LEAST_BITS} to {MOST_BITS}")
        if self.group is not None and self.group < 1:
            raise InputError(f"groups of {self.group} inputs", "give 1 or more, or channel")

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    def size(self, columns: int) -> int:
        """Inputs of a group, in a row of so many."""
        return columns if self.group is None else min(self.group, columns)

    def groups(self, columns: int) -> int:
        """Groups of a row; the last one may be short."""
        return -(-columns // self.size(columns))

    def grouped(self, values: Tensor) -> Tensor:
        """(m, n) as (m, groups, size), a short last group filled up with zeros, which every grid holds."""
        rows, columns = values.shape
        size, groups = self.size(columns), self.groups(columns)
        return functional.pad(values, (0, groups * size - columns)).view(rows, groups, size)

    def spread(self, values: Tensor, columns: int) -> Tensor:
        """(m, groups) as (m, columns): each input's own."""
        return values.repeat_interleave(self.size(columns), 1)[:, :columns]

    def sums(self, values: Tensor) -> Tensor:
        """(m, n) as (m, groups): what the inputs of each group add up to."""
        return self.grouped(values).sum(-1)


@dataclass(frozen=True)
class Codes:
    """A matrix on a grid.

    Args:
        grid: What the codes mean.
        codes: (m, n) uint8.
        scale: (m, groups) float32.
        zero: (m, groups) uint8.
    """

    grid: Grid
    codes: Tensor
    scale: Tensor
    zero: Tensor

    @property
    def steps(self) -> Tensor:
        """(m, n) float32 q - z."""
        return steps(self.codes, self.zero, self.grid)

    @property
    def weight(self) -> Tensor:
        """(m, n) float32."""
        return _by_group(torch.mul, self.steps, self.scale, self.grid)

    def packed(self) -> dict[str, Tensor]:
        """What is stored, by the names that compressed-tensors has for it."""
        stored = {"weight_packed": pack(self.codes, self.grid.bits), "weight_scale": self.scale.float()}
        return stored if self.grid.symmetric else {**stored, "weight_zero_point": self.zero}

    @classmethod
    def of(cls, grid: Grid, packed: Tensor, scale: Tensor, zero: Tensor | None, columns: int) -> "Codes":
        """What was stored."""
        middle = torch.full_like(scale, grid.middle, dtype=torch.uint8)
        return cls(grid, unpack(packed, grid.bits, columns), scale, middle if zero is None else zero)


def steps(codes: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """(m, n) float32 q - z of codes (m, n) and zero-points (m, groups)."""
    return _by_group(torch.sub, codes.float(), zero.float(), grid)


def _by_group(
    combine: Callable[[Tensor, Tensor], Tensor], values: Tensor, given: Tensor, grid: Grid
) -> Tensor:
    """(m, n) numbers and (m, groups), each with its group's: `spread` is slow, and needed for a short one."""
    rows, columns = values.shape
    size = grid.size(columns)
    if columns % size:
        return combine(values, grid.spread(given, columns))
    grouped = values.reshape(rows, columns // size, size)
    return combine(grouped, given[..., None]).view(rows, columns)


def rounded(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Codes:
    """The nearest codes to a weight (m, n).

    Args:
        scale: (m, groups).
        zero: (m, groups).
    """
    columns = weight.shape[1]
    wide = weight.float() / grid.spread(scale, columns)
    codes = (wide.round() + grid.spread(zero.float(), columns)).clamp_(0, grid.top)
    return Codes(grid, codes.to(torch.uint8), scale.float(), zero.to(torch.uint8))


def between(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero-point of the grid that just holds low <= 0 to high >= 0, any shape, float32.

    A range of nothing gets the scale 1: all its weights are 0, whatever the scale.
    """
    if grid.symmetric:
        scale = torch.maximum(-low / grid.middle, high / (grid.middle - 1))
        scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
        return scale, torch.full_like(scale, grid.middle)
    scale = (high - low) / grid.top
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    return scale, (-low / scale).round().clamp(0, grid.top)
