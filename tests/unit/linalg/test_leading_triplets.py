"""Leading singular triplets of a decomposition against torch.linalg.svd."""

import pytest
import torch

from kanna.errors import InputError
from kanna.linalg.decomposition import decompose

SHAPES = [(40, 40), (30, 70), (70, 30), (1, 8), (8, 1)]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leading(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    parts = decompose(matrix)
    return parts.left[:, :rank], parts.values[:rank], parts.right[:rank]


def graded(seed: int, m: int, n: int, smallest: float) -> torch.Tensor:
    """A matrix whose singular values fall geometrically from 1 to `smallest`."""
    r = min(m, n)
    u, v = torch.linalg.qr(draw(seed, m, r)).Q, torch.linalg.qr(draw(seed + 1, n, r)).Q
    exponent = torch.linspace(0, 1, r, dtype=torch.float64) if r > 1 else torch.zeros(1, dtype=torch.float64)
    return (u * smallest**exponent) @ v.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smallest", [0.5, 1e-2, 1e-6, 1e-12])
def test_equals_the_svd_also_where_the_gram_route_would_not(shape: tuple[int, int], smallest: float) -> None:
    matrix = graded(1, *shape, smallest)
    rank = max(1, int(0.8 * min(shape)))
    u, s, vh = leading(matrix, rank)
    reference = torch.linalg.svdvals(matrix)[:rank]
    torch.testing.assert_close(s, reference, rtol=1e-9 if smallest >= 1e-6 else 1e-3, atol=1e-15)
    eye = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, eye, atol=1e-9, rtol=0)
    torch.testing.assert_close(vh @ vh.T, eye, atol=1e-9, rtol=0)
    error = float((matrix - (u * s) @ vh).norm())
    best = float(torch.linalg.svdvals(matrix)[rank:].norm())
    assert error == pytest.approx(best, rel=1e-6, abs=1e-14)


def test_rank_deficient_matrix_at_full_rank() -> None:
    matrix = draw(2, 20, 3) @ draw(3, 3, 30)
    u, s, vh = leading(matrix, 20)
    torch.testing.assert_close((u * s) @ vh, matrix, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rank", [-1, 6])
def test_ranks_that_do_not_fit_are_refused(rank: int) -> None:
    with pytest.raises(InputError, match="was asked of a matrix of rank 5"):
        decompose(draw(6, 5, 8)).top(rank)
