"""Sums over a tensor that comes in chunks, the same to the last bit for chunks of any size."""

from __future__ import annotations

import numpy as np
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
    products = left.double().numpy() * right.double().numpy()
    for start in range(0, len(products), BLOCK):
        before += float(np.add.reduce(products[start : start + BLOCK]))
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
