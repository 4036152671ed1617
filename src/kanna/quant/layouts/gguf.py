"""GGUF: blocks of 32 signed steps q - z, each with a scale in float16.

A block of Q4_0 holds steps of -8 to 7, one of Q5_0 those of -16 to 15: byte j has the low four bits of steps
j and j + 16, and Q5_0 keeps the fifth bits in a word before them. Types with a minimum of each block, such as
Q4_1, would round the zero-point; these do not.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanna.quant.grid import Codes, Grid, steps

Kind = Literal["Q4_0", "Q5_0"]
BLOCK = 32
BYTES: dict[Kind, int] = {"Q4_0": 18, "Q5_0": 22}
_MIDDLE: dict[Kind, int] = {"Q4_0": 8, "Q5_0": 16}
MOST_BITS = 4


def kind(grid: Grid) -> Kind:
    """The smallest type that holds every step of a grid of up to four bits."""
    assert grid.bits <= MOST_BITS
    return "Q5_0" if grid.bits == MOST_BITS and not grid.symmetric else "Q4_0"


def blocks(codes: Codes) -> NDArray[np.uint8]:
    """(m, bytes of a row) of a matrix whose groups are whole blocks."""
    m, n = codes.codes.shape
    chosen = kind(codes.grid)
    moved = (steps(codes.codes, codes.zero, codes.grid).to(torch.int32) + _MIDDLE[chosen]).view(m, -1, BLOCK)
    scale = codes.scale.half().repeat_interleave(codes.grid.size(n) // BLOCK, 1)[..., None]
    low, high = moved[..., : BLOCK // 2] & 15, moved[..., BLOCK // 2 :] & 15
    parts = [_bytes(scale), (low | high << 4).to(torch.uint8)]
    if chosen == "Q5_0":
        parts.insert(1, _fifth_bits(moved))
    return torch.cat(parts, -1).reshape(m, -1).numpy()


def permuted(codes: Codes, heads: int) -> Codes:
    """Rows of each head with its two halves interleaved, as llama.cpp turns positions."""
    return Codes(codes.grid, *(interleaved(part, heads) for part in (codes.codes, codes.scale, codes.zero)))


def interleaved(values: Tensor, heads: int) -> Tensor:
    """(m, ...) the same of any tensor whose rows are those of a query or key matrix."""
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def _fifth_bits(moved: Tensor) -> Tensor:
    """(m, blocks, 4) uint8: bit j of the word is the fifth bit of step j."""
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.int32)
    return ((moved >> 4) & 1).unflatten(-1, (4, 8)).mul(weights).sum(-1).to(torch.uint8)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)
