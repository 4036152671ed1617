"""Rank measures on known spectra, noise rules on noise."""

import math

import pytest
import torch

from kanna.linalg.spectra import (
    effective_rank,
    energy_rank,
    estimate_noise,
    gavish_donoho_threshold,
    marchenko_pastur_edge,
    signal_rank,
    stable_rank,
)


def noise(seed: int, rows: int, columns: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(
        rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(4)) == 0
    # p = (3/4, 1/4): exp(entropy) worked out by hand.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(expected)
    assert effective_rank(5 * torch.tensor([3.0, 1.0])) == pytest.approx(expected)


def test_stable_rank() -> None:
    assert stable_rank(torch.ones(5)) == pytest.approx(5)
    assert stable_rank(torch.tensor([2.0, 1.0])) == pytest.approx(1.25)
    assert stable_rank(torch.zeros(3)) == 0


def test_energy_rank() -> None:
    values = torch.tensor([3.0, 1.0, 2.0])  # energies 9, 1, 4 of 14
    assert energy_rank(values, 9 / 14 - 1e-9) == 1
    assert energy_rank(values, 0.9) == 2
    assert energy_rank(values, 0.99) == 3
    assert energy_rank(values, 1.0) == 3
    assert energy_rank(torch.ones(10), 0.9) in (9, 10)
    assert energy_rank(torch.zeros(3), 0.9) == 0


@pytest.mark.parametrize(("rows", "columns"), [(200, 200), (120, 400), (400, 120)])
@pytest.mark.parametrize("size", [1.0, 0.02])
def test_pure_noise_keeps_next_to_nothing(rows: int, columns: int, size: float) -> None:
    values = torch.linalg.svdvals(noise(1, rows, columns, size))
    assert signal_rank(values, rows, columns, size, rule="gavish-donoho") == 0
    assert signal_rank(values, rows, columns, rule="gavish-donoho") == 0
    assert signal_rank(values, rows, columns, size, rule="marchenko-pastur") <= 2
    assert float(values.max()) == pytest.approx(marchenko_pastur_edge(rows, columns, size), rel=0.03)
    assert estimate_noise(values, rows, columns) == pytest.approx(size, rel=0.03)


def test_planted_signal_is_found() -> None:
    left, right = noise(2, 200, 5), noise(3, 5, 300)
    values = torch.linalg.svdvals(left @ right + noise(4, 200, 300, 0.5))
    assert signal_rank(values, 200, 300) == 5
    assert signal_rank(values, 200, 300, rule="marchenko-pastur") == 5


@pytest.mark.parametrize("rows", [1000, 750, 500, 200, 100, 20])
def test_gavish_donoho_threshold_for_unknown_noise(rows: int) -> None:
    """omega(beta) against the authors' own cubic, which they state to be within 0.02 (section IV)."""
    beta = rows / 1000
    cubic = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    level = estimate_noise(torch.ones(rows), rows, 1000)
    assert gavish_donoho_threshold(rows, 1000, level) == pytest.approx(cubic, abs=0.021)


def test_gavish_donoho_constants_of_square_matrices() -> None:
    assert gavish_donoho_threshold(900, 900, 1.0) == pytest.approx(4 / math.sqrt(3) * 30)
    level = estimate_noise(torch.ones(900), 900, 900)
    assert gavish_donoho_threshold(900, 900, level) == pytest.approx(2.858, abs=1e-3)
