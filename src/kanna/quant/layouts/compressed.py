"""compressed-tensors, `pack-quantized`: rows packed as kanna packs them, zero-points packed down the rows."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kanna.quant.grid import Codes, Grid
from kanna.quant.layouts import Shapes
from kanna.quant.packing import pack, unpack, words

PACKED, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"


def shapes(grid: Grid, m: int, n: int) -> Shapes:
    groups = grid.groups(n)
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        PACKED: (torch.int32, (m, words(n, grid.bits))),
        SCALE: (torch.float16, (m, groups)),
        SHAPE: (torch.int64, (2,)),
    }
    return found if grid.symmetric else {**found, ZERO: (torch.int32, (words(m, grid.bits), groups))}


def tensors(codes: Codes) -> dict[str, Tensor]:
    bits = codes.grid.bits
    found = {
        PACKED: pack(codes.codes, bits),
        SCALE: codes.scale.half(),
        SHAPE: torch.tensor(codes.codes.shape),
    }
    return found if codes.grid.symmetric else {**found, ZERO: pack(codes.zero.T, bits).T.contiguous()}


def codes(held: Mapping[str, Tensor], grid: Grid, m: int, n: int) -> Codes:
    """What was stored of a matrix (m, n); scales become float32."""
    scale = held[SCALE].float()
    if grid.symmetric:
        zero = torch.full_like(scale, grid.middle, dtype=torch.uint8)
    else:
        zero = unpack(held[ZERO].T.contiguous(), grid.bits, m).T.contiguous()
    return Codes(grid, unpack(held[PACKED], grid.bits, n), scale, zero)
