"""Truncated SVDs against torch.linalg.svd."""

import numpy as np
import pytest
import torch

from kanna.errors import InputError
from kanna.linalg.truncation import randomized_svd, truncated_svd

SHAPES = [(40, 40), (30, 70), (70, 30), (1, 8), (8, 1)]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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
    u, s, vh = truncated_svd(matrix, rank)
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
    u, s, vh = truncated_svd(matrix, 20)
    torch.testing.assert_close((u * s) @ vh, matrix, atol=1e-12, rtol=0)


def test_randomized_is_seeded_and_close_for_small_ranks() -> None:
    matrix = graded(5, 200, 300, 1e-3)
    u, s, vh = randomized_svd(matrix, 8, seed=3)
    torch.testing.assert_close(s, torch.linalg.svdvals(matrix)[:8], rtol=1e-4, atol=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = randomized_svd(matrix, 8, seed=3)
    assert torch.equal(u, again[0]) and torch.equal(vh, again[2])


@pytest.mark.parametrize("decay", [None, 0.5, 1.0])
@pytest.mark.parametrize("rho", [0.01, 0.1, 0.2, 0.8])
def test_randomized_is_within_a_percent_of_the_optimum(decay: float | None, rho: float) -> None:
    """Gaussian noise, s_i = i^-0.5 and s_i = i^-1, as published measurements of svd_lowrank used."""
    matrix = draw(7, 512, 2048)
    if decay is not None:
        frames = torch.linalg.qr(draw(8, 512, 512)).Q, torch.linalg.qr(draw(9, 2048, 512)).Q
        matrix = (frames[0] * torch.arange(1, 513, dtype=torch.float64) ** -decay) @ frames[1].T
    rank = int(rho * 512)
    u, s, vh = randomized_svd(matrix, rank, seed=1)
    best = float(np.sqrt(np.square(np.linalg.svd(matrix.numpy(), compute_uv=False)[rank:]).sum()))
    assert best * (1 - 1e-9) <= float((matrix - (u * s) @ vh).norm()) <= 1.01 * best


@pytest.mark.parametrize("rank", [-1, 0, 6])
def test_ranks_that_do_not_fit_are_refused(rank: int) -> None:
    with pytest.raises(InputError, match="does not fit"):
        truncated_svd(draw(6, 5, 8), rank)
