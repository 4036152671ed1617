"""GPTQ: inputs down the rows of words, one column an output; zero-points packed along the outputs.

The second version of the format stores z, the first one z - 1 in the bits of a code, so that 0 becomes the
top. kanna writes the second only and reads both.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from kanna.quant.grid import Codes, Grid
from kanna.quant.layouts import Shapes
from kanna.quant.packing import pack, unpack, words

PACKED, ZERO, SCALE, GROUP = "qweight", "qzeros", "scales", "g_idx"


def shapes(grid: Grid, m: int, n: int) -> Shapes:
    groups = grid.groups(n)
    return {
        PACKED: (torch.int32, (words(n, grid.bits), m)),
        ZERO: (torch.int32, (groups, words(m, grid.bits))),
        SCALE: (torch.float16, (groups, m)),
        GROUP: (torch.int32, (n,)),
    }


def tensors(codes: Codes) -> dict[str, Tensor]:
    grid, n = codes.grid, codes.codes.shape[1]
    return {
        PACKED: pack(codes.codes, grid.bits).T.contiguous(),
        ZERO: pack(codes.zero.T, grid.bits),
        SCALE: codes.scale.T.half().contiguous(),
        GROUP: in_order(grid, n),
    }


def codes(held: Mapping[str, Tensor], grid: Grid, m: int, n: int, first_version: bool = False) -> Codes:
    """What was stored of a matrix (m, n); scales become float32.

    A symmetric grid has its middle as zero-point, whatever is stored.
    """
    zero = unpack(held[ZERO].contiguous(), grid.bits, m).T.contiguous()
    if first_version:
        zero = (zero + 1) & grid.top
    packed, scale = held[PACKED].T.contiguous(), held[SCALE].T.float().contiguous()
    return Codes(grid, unpack(packed, grid.bits, n), scale, zero)


def in_order(grid: Grid, n: int) -> Tensor:
    """(n,) int32: the group of each input where groups are runs of inputs."""
    return torch.arange(n, dtype=torch.int32) // grid.size(n)
