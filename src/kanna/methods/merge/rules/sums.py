"""Sums over a tensor that comes in chunks, the same to the last bit for chunks of any size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Values that are added up at once; chunks are whole numbers of blocks, but for the last.
BLOCK = 2**14


def added(before: float, left: Tensor, right: Tensor) -> float:
    """An inner product that goes on, in float64.

    Args:
        before: Of the chunks so far.
        left: Flat.
        right: As long.
    """
    x, y = left.numpy(), right.numpy()
    for start in range(0, len(x), BLOCK):
        # By blocks that lie in the cache; einsum has one thread and one order, whatever the chunk.
        before += float(
            np.einsum("i,i->", x[start : start + BLOCK], y[start : start + BLOCK], dtype=np.float64)
        )
    return before


def summed(before: float, values: Tensor, block: int = BLOCK) -> float:
    """A sum that goes on, in float64.

    Args:
        before: Of the chunks so far.
        values: Flat.
        block: Values that are added up at once; chunks are whole numbers of blocks, but for the last.
    """
    wide = values.double().numpy()
    for start in range(0, len(wide), block):
        before += float(np.add.reduce(wide[start : start + block]))
    return before


def squares(before: float, values: Tensor) -> float:
    """A sum of squares that goes on; each block in the dtype of the values, blocks in float64.

    For figures of a few digits: several times faster than `added`.
    """
    whole = len(values) // BLOCK * BLOCK
    blocks = [values[:whole].view(-1, BLOCK), values[None, whole:]]
    for block in blocks:
        if block.numel():
            for norm in torch.linalg.vector_norm(block, dim=1).tolist():
                before += norm * norm
    return before
