"""MLX, affine: rows packed as kanna packs them; w = scale q + bias, with bias = -scale z.

In float32, since a product in sixteen bits would be another number.
"""

import torch
from torch import Tensor

from kanna.quant.grid import Codes, Grid
from kanna.quant.layouts import Shapes
from kanna.quant.packing import pack, words

PACKED, SCALE, BIAS = "weight", "scales", "biases"


def shapes(grid: Grid, m: int, n: int) -> Shapes:
    groups = grid.groups(n)
    return {
        PACKED: (torch.uint32, (m, words(n, grid.bits))),
        SCALE: (torch.float32, (m, groups)),
        BIAS: (torch.float32, (m, groups)),
    }


def tensors(codes: Codes) -> dict[str, Tensor]:
    scale = codes.scale.float()
    return {
        PACKED: pack(codes.codes, codes.grid.bits).view(torch.uint32),
        SCALE: scale,
        BIAS: -scale * codes.zero.float(),
    }
