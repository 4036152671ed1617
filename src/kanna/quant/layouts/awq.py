"""AWQ, version gemm, four bits: eight outputs a word, in an order of their own; one row an input."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kanna.quant.grid import Codes, Grid
from kanna.quant.layouts import Shapes
from kanna.quant.packing import pack, unpack

PACKED, ZERO, SCALE = "qweight", "qzeros", "scales"
BITS, OUTPUTS = 4, 8
# Which of eight outputs lies in the lowest four bits of a word, in the next, and so on.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def shapes(grid: Grid, m: int, n: int) -> Shapes:
    groups = grid.groups(n)
    return {
        PACKED: (torch.int32, (n, m // OUTPUTS)),
        ZERO: (torch.int32, (groups, m // OUTPUTS)),
        SCALE: (torch.float16, (groups, m)),
    }


def tensors(codes: Codes) -> dict[str, Tensor]:
    return {
        PACKED: pack(_ordered(codes.codes.T, _ORDER), BITS),
        ZERO: pack(_ordered(codes.zero.T, _ORDER), BITS),
        SCALE: codes.scale.T.half().contiguous(),
    }


def codes(held: Mapping[str, Tensor], grid: Grid, m: int, n: int) -> Codes:
    """What was stored of a matrix (m, n); scales become float32."""
    back = tuple(_ORDER.index(output) for output in range(OUTPUTS))
    found, zero = (_ordered(unpack(held[name], BITS, m), back).T.contiguous() for name in (PACKED, ZERO))
    assert found.shape == (m, n)
    return Codes(grid, found, held[SCALE].T.float().contiguous(), zero)


def _ordered(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """(rows, m) with each eight columns in another order."""
    return values.reshape(len(values), -1, OUTPUTS)[..., list(order)].reshape(len(values), -1)
