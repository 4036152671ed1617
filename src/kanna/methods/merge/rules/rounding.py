"""Rounding once, to nearest even, from what was computed in to what is written."""

import torch
from torch import Tensor


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in another dtype, each rounded once.

    torch goes from float64 to sixteen bits by way of float32, which rounds twice.
    """
    if values.dtype == torch.float64 and dtype.itemsize == 2:
        values = _odd(values)
    return values.to(dtype)


def _odd(values: Tensor) -> Tensor:
    """In float32, rounded to odd: what is rounded from there on is as if it had been rounded at once."""
    near = values.float()
    inexact = near.double() != values
    bits = near.view(torch.int32)
    bits = bits - (near.double().abs() > values.abs()).int()  # towards zero
    return (bits | inexact.int()).view(torch.float32)
