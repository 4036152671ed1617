"""What rho means, and what the rules for noise say about noise and about planted signal."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.spectra import effective_rank, marchenko_pastur_edge, signal_rank
from kanna.methods.laser.ranks import (
    automatic_rank,
    block_ranks,
    laserrmt_threshold,
    rank_of,
    signal_to_noise,
)

RHOS = ("0.9", "0.8", "0.6", "0.4", "0.2", "0.1", "0.05", "0.01", "0.005")
TABLE = {
    4096: (3686, 3276, 2457, 1638, 819, 409, 204, 40, 20),
    1024: (921, 819, 614, 409, 204, 102, 51, 10, 5),
    768: (691, 614, 460, 307, 153, 76, 38, 7, 3),
}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def values_of(weight: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(weight.numpy(), compute_uv=False))


def spiked(seed: int, rows: int, columns: int, spikes: int, size: float) -> Tensor:
    """Noise of standard deviation 1 with `spikes` components of `size` times its largest singular value."""
    left = torch.linalg.qr(draw(seed + 1, rows, spikes)).Q
    right = torch.linalg.qr(draw(seed + 2, columns, spikes)).Q
    return draw(seed, rows, columns) + size * marchenko_pastur_edge(rows, columns, 1.0) * left @ right.T


@pytest.mark.parametrize("width", TABLE)
def test_the_ranks_of_the_published_grid(width: int) -> None:
    for rows, columns in ((width, width), (width, 4 * width), (4 * width, width)):
        assert tuple(rank_of(rho, rows, columns) for rho in RHOS) == TABLE[width]
        assert tuple(rank_of(float(rho), rows, columns) for rho in RHOS) == TABLE[width]


def test_rho_is_the_decimal_it_is_written_as() -> None:
    assert math.floor(0.29 * 100) == 28
    assert rank_of(0.29, 100, 300) == rank_of("0.29", 300, 100) == 29
    assert rank_of(np.float32(0.29), 100, 100) == 29  # type: ignore[arg-type]
    assert rank_of("0." + 40 * "9", 100, 100) == 99
    assert rank_of("1e-999999", 100, 100) == 0 == rank_of(0, 100, 100)
    assert rank_of(1, 100, 100) == rank_of(1.0, 100, 100) == rank_of("1", 100, 100) == 100


@given(st.integers(0, 10_000), st.integers(1, 20_000), st.integers(1, 20_000))
def test_rank_is_the_exact_floor(part: int, rows: int, columns: int) -> None:
    expected = math.floor(Fraction(part, 10_000) * min(rows, columns))
    assert rank_of(f"{part / 10_000:.4f}", rows, columns) == expected == rank_of(part / 10_000, rows, columns)


@pytest.mark.parametrize("rho", [-0.1, 1.0001, 2, math.nan, math.inf, "nan", "-inf", "", "half", "0,5", True])
def test_rho_outside_its_range_is_refused(rho: float | str) -> None:
    with pytest.raises(InputError, match="0 to 1"):
        rank_of(rho, 100, 100)


def test_ranks_of_blocks_are_those_of_their_own_shapes() -> None:
    assert block_ranks("0.5", 12, 100, 3) == [2, 2, 2]
    assert sorted(block_ranks("0.5", 11, 100, 3)) == [1, 2, 2]
    assert block_ranks("0.5", 300, 10, 3) == [5, 5, 5]
    assert block_ranks("0.29", 100, 200, 1) == [29]


@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (200, 800), (800, 200)])
@pytest.mark.parametrize("seed", range(3))
def test_of_pure_noise_next_to_nothing_is_kept(rows: int, columns: int, seed: int) -> None:
    values = values_of(0.02 * draw(seed, rows, columns))
    assert automatic_rank(values, rows, columns, "mp") <= 2
    assert signal_rank(values, rows, columns, 0.02, rule="marchenko-pastur") <= 2
    assert automatic_rank(values, rows, columns, "gd") == 0


@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (200, 600), (600, 200)])
@pytest.mark.parametrize("spikes", [1, 5, 12])
def test_spikes_at_twice_the_edge_are_all_that_is_kept(rows: int, columns: int, spikes: int) -> None:
    values = values_of(spiked(10 * spikes, rows, columns, spikes, 2.0))
    assert automatic_rank(values, rows, columns, "mp") == spikes
    assert automatic_rank(values, rows, columns, "gd") == spikes
    assert signal_rank(values, rows, columns, 1.0, rule="marchenko-pastur") == spikes


def test_laserrmt_keeps_much_of_pure_noise() -> None:
    """What the published code does: 243 of 1024 for a square matrix, all of them for 1 to 4."""
    square, wide = values_of(draw(30, 512, 512)), values_of(draw(31, 384, 1536))
    assert automatic_rank(square, 512, 512, "laserrmt") / 512 == pytest.approx(0.24, abs=0.02)
    assert automatic_rank(wide, 384, 1536, "laserrmt") == 384


def test_laserrmt_threshold_is_the_published_formula() -> None:
    values = values_of(draw(32, 70, 200))
    high, low = np.percentile(values.numpy(), [75, 25])
    expected = (high - low) / 1.349 * np.sqrt((1 + np.sqrt(70 / 200)) ** 2)
    for rows, columns in ((70, 200), (200, 70)):
        assert laserrmt_threshold(values, rows, columns) == pytest.approx(expected)
        assert automatic_rank(values, rows, columns, "laserrmt") == int((values.numpy() > expected).sum())
    assert laserrmt_threshold(torch.tensor([2.0]), 1, 9) == 0
    assert automatic_rank(torch.zeros(4), 4, 4, "laserrmt") == 0


@pytest.mark.parametrize("rule", ["mp", "gd", "laserrmt"])
def test_rules_scale_with_the_matrix(rule: str) -> None:
    values = values_of(spiked(40, 80, 120, 4, 1.2))
    expected = automatic_rank(values, 80, 120, rule)
    for scale in (1e-6, 1e6):
        assert automatic_rank(scale * values, 80, 120, rule) == expected
    assert automatic_rank(torch.zeros(80), 80, 120, rule) == 0


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match="no rule 'guess'"):
        automatic_rank(torch.ones(3), 3, 3, "guess")


def test_signal_to_noise() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 0.5])
    assert signal_to_noise(values, 1.5) == pytest.approx(4)
    assert signal_to_noise(values, 2.0) == pytest.approx(4 / 3.5)  # a value at the threshold is noise
    assert signal_to_noise(values, 9.0) == 0
    assert signal_to_noise(values, 0.1) == math.inf
    assert signal_to_noise(torch.zeros(3), 0.0) == 0


def test_effective_rank_of_the_identity_and_of_rank_one() -> None:
    assert effective_rank(values_of(torch.eye(37, dtype=torch.float64))) == pytest.approx(37)
    assert effective_rank(values_of(draw(50, 20, 1) @ draw(51, 1, 30))) == pytest.approx(1, abs=1e-6)
