"""Row slices and views on small tensors whose entries are their positions."""

import pytest
import torch

from kanna.models.matrix import RowSlice, View
from kanna.models.views import read, read_bias, row_index, write


def test_contiguous_rows() -> None:
    assert RowSlice.contiguous(3, 4).rows == 4
    assert row_index(RowSlice.contiguous(3, 4)).tolist() == [3, 4, 5, 6]


def test_interleaved_rows() -> None:
    rows = RowSlice(start=2, block=2, stride=6, count=3)
    assert rows.rows == 6
    assert row_index(rows).tolist() == [2, 3, 8, 9, 14, 15]


def test_whole_matrix_is_the_parameter_itself() -> None:
    weight = torch.randn(5, 3)
    assert read(weight, View()) is weight


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("expert", [None, 1])
@pytest.mark.parametrize("rows", [None, RowSlice.contiguous(2, 3), RowSlice(1, 2, 4, 2)])
def test_every_combination(transposed: bool, expert: int | None, rows: RowSlice | None) -> None:
    matrix = torch.randn(3, 8, 5, dtype=torch.bfloat16)
    stored = matrix.transpose(1, 2).contiguous() if transposed else matrix
    parameter = stored if expert is not None else stored[0]
    view = View(rows=rows, transposed=transposed, expert=expert)
    expected = matrix[expert or 0][row_index(rows) if rows else slice(None)]
    assert torch.equal(read(parameter, view), expected)
    before = parameter.clone()
    written = write(parameter, view, torch.zeros_like(expected))
    assert torch.equal(parameter, before)
    assert written.dtype == torch.bfloat16
    assert written.stride() == parameter.stride()
    assert int((written != parameter).sum()) == int((expected != 0).sum())


def test_write_converts_to_the_dtype_of_the_parameter() -> None:
    weight = torch.zeros(2, 2, dtype=torch.float16)
    assert write(weight, View(), torch.eye(2, dtype=torch.float64)).dtype == torch.float16


def test_bias_of_a_slice() -> None:
    view = View(rows=RowSlice(1, 1, 3, 2), transposed=True)
    assert read_bias(torch.arange(6), view).tolist() == [1, 4]
    assert read_bias(torch.arange(6), View(transposed=True)).tolist() == list(range(6))


def test_views_work_on_the_meta_device() -> None:
    view = View(rows=RowSlice(1, 1, 3, 2))
    assert read(torch.empty(6, 4, device="meta"), view).shape == (2, 4)
