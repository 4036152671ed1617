"""Tucker equals the SVD for a matrix (B1), counts and break-even (B2), and HOOI on real stacks."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kanna.errors import InputError
from kanna.linalg import tucker as module
from kanna.linalg.tucker import break_even_rank, fold_core, pair_parameters, tucker, tucker_parameters


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def heads(seed: int) -> torch.Tensor:
    """A stack like all heads of a layer: (heads, head size, inputs), with shared structure and noise."""
    shared = torch.einsum("ia,jb,kc,abc->ijk", draw(seed, 6, 3), draw(seed + 1, 12, 4), draw(seed + 2, 30, 5),
                          draw(seed + 3, 3, 4, 5))  # fmt: skip
    return shared + 2.0 * draw(seed + 4, 6, 12, 30)


def relative_error(tensor: torch.Tensor, ranks: tuple[int, ...], sweeps: int) -> float:
    return float((tensor - tucker(tensor, ranks, sweeps, tolerance=-1.0).dense()).norm() / tensor.norm())


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24)])
@pytest.mark.parametrize("rank", [1, 7, 20])
def test_matrix_is_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    weight = draw(1, *shape)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    parts = tucker(weight, (rank, rank))
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert float((parts.dense() - best).norm() / best.norm()) <= 1e-6
    off_diagonal = parts.core - torch.diag(parts.core.diagonal())
    assert float(off_diagonal.abs().max()) <= 1e-6 * float(s[0])
    for factor in parts.factors:
        torch.testing.assert_close(factor.T @ factor, torch.eye(rank, dtype=torch.float64), atol=1e-6, rtol=0)
    error = float((weight - parts.dense()).norm())
    assert error == pytest.approx(float(s[rank:].norm()), rel=1e-9)
    expand, reduce = fold_core(parts)
    torch.testing.assert_close(expand @ reduce, parts.dense(), atol=1e-12, rtol=0)


def test_the_general_route_agrees_with_the_svd_on_a_matrix() -> None:
    """The same matrix as a stack of one, which takes HOSVD and HOOI."""
    weight = draw(2, 20, 33)
    general = tucker(weight[None], (1, 6, 6))
    torch.testing.assert_close(general.dense()[0], tucker(weight, (6, 6)).dense(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("ranks", [(3, 4, 5), (2, 6, 3), (6, 12, 10), (1, 1, 1), (4, 2, 8)])
def test_hooi_is_monotone_and_never_above_hosvd(ranks: tuple[int, ...]) -> None:
    tensor = heads(3)
    errors = [relative_error(tensor, ranks, sweeps) for sweeps in range(6)]
    for before, after in pairwise(errors):
        assert after <= before * (1 + 1e-12)


def test_hooi_improves_on_hosvd_somewhere() -> None:
    assert relative_error(heads(3), (2, 2, 2), 25) < relative_error(heads(3), (2, 2, 2), 0) - 1e-4


def test_exact_at_the_true_ranks_and_at_full_rank() -> None:
    clean = torch.einsum("ia,jb,kc,abc->ijk", draw(4, 6, 3), draw(5, 12, 4), draw(6, 30, 5), draw(7, 3, 4, 5))
    torch.testing.assert_close(tucker(clean, (3, 4, 5)).dense(), clean, atol=1e-9, rtol=0)
    tensor = draw(8, 3, 4, 5, 2)
    torch.testing.assert_close(tucker(tensor, (3, 4, 5, 2)).dense(), tensor, atol=1e-12, rtol=0)


def test_error_is_the_energy_the_core_lacks_and_factors_are_orthonormal() -> None:
    tensor = heads(9)
    parts = tucker(tensor, (3, 4, 5))
    measured = float((tensor - parts.dense()).square().sum())
    assert measured == pytest.approx(float(tensor.square().sum() - parts.core.square().sum()), rel=1e-9)
    for factor in parts.factors:
        eye = torch.eye(factor.shape[1], dtype=torch.float64)
        torch.testing.assert_close(factor.T @ factor, eye, atol=1e-10, rtol=0)


def test_parameter_counts() -> None:
    parts = tucker(draw(10, 20, 33), (6, 6))
    assert parts.parameters == tucker_parameters(20, 33, 6) == 6 * 53 + 36
    assert sum(t.numel() for t in fold_core(parts)) == pair_parameters(20, 33, 6) == 6 * 53


@given(st.integers(1, 5000), st.integers(1, 5000), st.booleans())
def test_break_even_is_the_last_rank_below_dense(m: int, n: int, core: bool) -> None:
    rank = break_even_rank(m, n, core)
    count = tucker_parameters if core else pair_parameters
    assert count(m, n, rank) < m * n <= count(m, n, rank + 1)


def test_break_even_of_known_shapes() -> None:
    assert break_even_rank(4096, 4096, core=True) == 1696
    assert break_even_rank(11008, 4096, core=True) == 2553
    assert break_even_rank(1024, 4096, core=True) == 718
    assert break_even_rank(4096, 4096) == 2047
    assert break_even_rank(1, 1) == 0


@pytest.mark.parametrize("ranks", [(7, 4, 5), (2, 2), (0, 1, 1), (1, 1, 2)])
def test_ranks_that_do_not_fit_are_refused(ranks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="do not fit"):
        tucker(heads(11), ranks)
    with pytest.raises(InputError, match="fold"):
        fold_core(module.tucker(heads(11), (2, 2, 2)))
