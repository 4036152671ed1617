"""Pivot storage gives back the low-rank weight, with mixtures of modest size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kanna.errors import InputError
from kanna.linalg.pivot import LARGEST_MIX, pivot_factors
from kanna.linalg.whitening import basis, factors


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def product_of(order: torch.Tensor, rows: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """The (m, n) weight that pivot storage stands for."""
    return torch.cat([rows, mix @ rows])[order]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 40), st.data())
def test_lossless_and_modest(seed: int, m: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, m - 1))
    expand, reduce = draw(seed, m, k), draw(seed + 1, k, n)
    order, rows, mix = pivot_factors(expand, reduce)
    product = expand @ reduce
    assert rows.shape == (k, n) and mix.shape == (m - k, k) and order.sort().values.tolist() == list(range(m))
    assert float((product_of(order, rows, mix) - product).abs().max()) <= 1e-12 * float(product.norm())
    assert float(mix.abs().max()) <= LARGEST_MIX + 1e-9


def test_stored_rows_are_rows_of_the_weight_and_the_forward_is_the_same() -> None:
    weight = draw(2, 192, 256)
    expand, reduce = factors(weight, basis(weight), 96)
    order, rows, mix = pivot_factors(expand, reduce)
    product = expand @ reduce
    torch.testing.assert_close(product[order < 96], rows[order[order < 96]], atol=1e-12, rtol=0)
    x = draw(3, 256, 5)
    chosen = rows @ x
    torch.testing.assert_close(torch.cat([chosen, mix @ chosen])[order], product @ x, atol=1e-11, rtol=0)
    assert float((product_of(order, rows, mix) - product).norm() / product.norm()) < 1e-13


def test_columns_of_very_different_scale_do_not_matter() -> None:
    expand, reduce = draw(4, 40, 12), draw(5, 12, 30)
    scale = torch.logspace(-8, 8, 12, dtype=torch.float64)
    order, rows, mix = pivot_factors(expand * scale, reduce / scale[:, None])
    torch.testing.assert_close(product_of(order, rows, mix), expand @ reduce, atol=1e-6, rtol=1e-6)


def test_parameters_are_below_the_pair_and_never_above_dense() -> None:
    for m, n, k in [(10, 20, 3), (64, 64, 63), (100, 7, 6)]:
        order, rows, mix = pivot_factors(draw(6, m, k), draw(7, k, n))
        assert order.numel() == m and rows.numel() + mix.numel() == k * (m + n) - k * k
        assert rows.numel() + mix.numel() < min(k * (m + n), m * n)


def test_full_rank_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="k < m"):
        pivot_factors(draw(8, 5, 5), draw(9, 5, 7))
    with pytest.raises(InputError, match="k < m"):
        pivot_factors(draw(8, 5, 3), draw(9, 4, 7))
