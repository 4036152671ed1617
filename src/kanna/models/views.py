"""Read a matrix out of its parameter, and write one back."""

import torch
from torch import Tensor

from kanna.models.matrix import RowSlice, View


def row_index(rows: RowSlice) -> Tensor:
    """The row numbers of a slice, in order: int64 of shape (rows.rows,)."""
    starts = rows.start + rows.stride * torch.arange(rows.count)
    return (starts[:, None] + torch.arange(rows.block)).flatten()


def read(parameter: Tensor, view: View) -> Tensor:
    """The matrix (m, n) that `view` shows of `parameter`, in the parameter's dtype.

    It may share memory with the parameter; clone it before changing it in place.
    """
    return _take(_stored(parameter, view), view.rows)


def read_bias(bias: Tensor, view: View) -> Tensor:
    """The entries (m,) of a fused module's bias that belong to the matrix of `view`."""
    return _take(bias, view.rows)


def write(parameter: Tensor, view: View, matrix: Tensor) -> Tensor:
    """A copy of `parameter` in which the matrix of `view` is `matrix`, shape (m, n).

    The rest of the parameter is bit-identical; `matrix` is converted to the parameter's dtype.
    """
    result = parameter.clone()
    target = _stored(result, view)
    values = matrix.to(dtype=result.dtype, device=result.device)
    if view.rows is None:
        target.copy_(values)
    else:
        target[row_index(view.rows).to(result.device)] = values
    return result


def _stored(parameter: Tensor, view: View) -> Tensor:
    """All rows of the parameter as (rows, n), sharing its memory."""
    whole = parameter if view.expert is None else parameter[view.expert]
    return whole.T if view.transposed else whole


def _take(tensor: Tensor, rows: RowSlice | None) -> Tensor:
    if rows is None:
        return tensor
    if rows.count == 1:
        return tensor.narrow(0, rows.start, rows.block)
    return tensor[row_index(rows).to(tensor.device)]
