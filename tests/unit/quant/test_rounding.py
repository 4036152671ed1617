"""Grids and what is put on them, against loops and dense solutions in float64."""

import pytest
import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.quant.gptq import better_of, gptq, output_error, refit
from kanna.quant.grid import Codes, Grid
from kanna.quant.rounding import quantised, squared_error

GRIDS = [
    Grid(bits, group, symmetric)
    for bits in (2, 3, 4, 8)
    for group in (16, 32, None)
    for symmetric in (False, True)
]


def weight(rows: int = 12, columns: int = 72, seed: int = 0) -> Tensor:
    """One row of zeros, one of one number, one without negative numbers, one of a single spike."""
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05
    made[0], made[1], made[2], made[3] = 0.0, 0.3, made[2].abs(), 0.0
    made[3, 7] = -2.0
    return made


def gram_of(columns: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(300, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    return (mixed.T @ mixed).double()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_minmax_is_within_half_a_step(grid: Grid) -> None:
    made = weight()
    codes = quantised(made, grid, "minmax")
    step = grid.spread(codes.scale, 72)
    assert (codes.weight - made).abs().le(step / 2 * (1 + 1e-5)).all()
    assert torch.equal(codes.weight[0], torch.zeros(72))
    assert codes.codes.max() <= grid.top and codes.zero.max() <= grid.top
    if not grid.symmetric:
        torch.testing.assert_close(codes.weight[1], made[1])  # the one number is the end of the grid


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_mse_is_never_above_minmax_in_any_group(grid: Grid) -> None:
    made = weight(seed=5)
    errors = [squared_error(made, quantised(made, grid, how)) for how in ("mse", "minmax")]
    assert (errors[0] <= errors[1]).all()
    assert (errors[0] < errors[1]).any() or grid.bits == 8


def test_groups_by_hand() -> None:
    """Seven inputs in groups of four: the last group has three."""
    made = torch.tensor([[0.0, 1.0, 2.0, 3.0, -2.0, 0.0, 4.0]])
    codes = quantised(made, Grid(2, 4), "minmax")
    assert codes.scale.tolist() == [[1.0, 2.0]] and codes.zero.tolist() == [[0, 1]]
    assert codes.codes.tolist() == [[0, 1, 2, 3, 0, 1, 3]]
    assert torch.equal(codes.weight, made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("columns", "group"), [(24, 8), (20, 8), (7, None), (8, 32), (1, 1)])
def test_every_weight_is_the_one_that_its_group_gives(
    columns: int, group: int | None, dtype: torch.dtype
) -> None:
    """To the bit, however groups are gone through."""
    grid, draw = Grid(4, group), torch.Generator().manual_seed(columns)
    codes = torch.randint(0, 16, (3, columns), generator=draw).to(torch.uint8)
    scale = torch.rand(3, grid.groups(columns), generator=draw, dtype=dtype)
    zero = torch.randint(0, 16, scale.shape, generator=draw).to(torch.uint8)
    size, found = group or columns, Codes(grid, codes, scale, zero)
    for o in range(3):
        for i in range(columns):
            step = float(codes[o, i]) - float(zero[o, i // size])
            assert float(found.steps[o, i]) == step
            assert found.weight[o, i] == torch.tensor(step) * scale[o, i // size]
    assert found.weight.dtype == dtype and found.weight.is_contiguous()
    assert Codes(grid, codes[:0], scale[:0], zero[:0]).weight.shape == (0, columns)


def test_hqq_is_never_above_minmax_in_its_own_norm() -> None:
    made = weight(rows=64, columns=250, seed=2).exp() - 1
    made[:, ::37] *= 6
    grid = Grid(2, 64)
    off = [grid.sums((quantised(made, grid, how).weight - made).abs().pow(0.7)) for how in ("hqq", "minmax")]
    assert (off[0] <= off[1]).all()
    with pytest.raises(InputError, match="one group a row"):
        quantised(made, Grid(4), "hqq")


def in_full(made: Tensor, gram: Tensor, start: Codes, ridge: float) -> Tensor:
    """Codes by the inverse of what is left of G, taken anew for each input."""
    grid, n = start.grid, made.shape[1]
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    scale, zero = grid.spread(start.scale.double(), n), grid.spread(start.zero.double(), n)
    left, codes = made.double().clone(), torch.zeros(made.shape)
    open_ = damped.diagonal().argsort(descending=True, stable=True).tolist()
    while open_:
        j = open_.pop(0)
        codes[:, j] = ((left[:, j] / scale[:, j]).round() + zero[:, j]).clamp(0, grid.top)
        error = left[:, j] - scale[:, j] * (codes[:, j] - zero[:, j])
        if open_:
            # The inputs that are left make up for it as well as they can.
            inner = damped[open_][:, open_]
            left[:, open_] += error[:, None] * torch.linalg.solve(inner, damped[open_, j])
    return codes


@pytest.mark.parametrize("grid", [Grid(2, 32), Grid(3), Grid(4, 16, True)], ids=str)
def test_gptq_is_the_greedy_rounding_it_is_said_to_be(grid: Grid) -> None:
    made, gram = weight(), gram_of(72)
    start = quantised(made, grid, "minmax")
    assert torch.equal(gptq(made, gram, start).codes.float(), in_full(made, gram, start, 0.01))


@pytest.mark.parametrize("grid", [Grid(2, 32), Grid(3), Grid(4, 16, True)], ids=str)
def test_no_scales_are_better_than_those_refitted(grid: Grid) -> None:
    made, gram = weight(), gram_of(72)
    codes = gptq(made, gram, quantised(made, grid, "minmax"))
    found = refit(made, gram, codes)
    assert torch.equal(found.codes, codes.codes) and torch.equal(found.zero, codes.zero)
    before, after = (output_error(made, each.weight, gram) for each in (codes, found))
    assert (after <= before).all() and after.sum() < before.sum()
    root = torch.linalg.cholesky(gram)
    for row in (2, 5, 9):  # the same by least squares on R^T (w - V s)
        steps = torch.zeros(72, grid.groups(72), dtype=torch.float64)
        for i in range(72):
            steps[i, i // grid.size(72)] = codes.steps[row, i]
        best = torch.linalg.lstsq(root.T @ steps, root.T @ made[row].double(), driver="gelsd").solution
        error = (root.T @ (made[row].double() - steps @ best)).square().sum()
        assert after[row] <= error * (1 + 1e-6) + 1e-12


def test_inputs_that_never_occur_and_statistics_of_few_tokens() -> None:
    made, grid = weight(), Grid(3, 16)
    few = torch.randn(5, 72, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    few[:, :16] = 0
    gram = few.T @ few
    start = better_of(made, grid, gram)
    found = refit(made, gram, gptq(made, gram, start))
    assert found.weight.isfinite().all()
    assert torch.equal(found.scale[:, 0], start.scale[:, 0])
    assert (output_error(made, found.weight, gram) <= output_error(made, start.weight, gram) + 1e-9).all()


@pytest.mark.parametrize(("bits", "group"), [(1, None), (9, None), (4, 0)])
def test_grids_that_there_are_not(bits: int, group: int | None) -> None:
    with pytest.raises(InputError):
        Grid(bits, group)
