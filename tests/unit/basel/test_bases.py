"""A matrix as its bases: exact at first, with the gradients that the formulas say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import kanna
from kanna.methods.basel.bases import Bases, Decomposed, decomposed
from kanna.methods.basel.config import BaselConfig
from kanna.methods.basel.execute import _grams, _put_bases, _Start
from kanna.methods.basel.plan import make_plan
from kanna.runs.source import Source
from kanna.runs.step import Inputs

FAMILIES = ("llama", "gpt2", "gpt_neox", "qwen2", "phi3")


def matrix(m: int, n: int, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(m, n, generator=draw, dtype=torch.float64)
    return matrix(m, rank, seed=seed) @ matrix(rank, n, seed=seed + 1)


def bases_of(weight: torch.Tensor, extra: int = 2) -> Bases:
    return Bases(decomposed(weight, torch.float64), extra, torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (9, 5)])
@pytest.mark.parametrize("rank", [None, 3])
def test_bases_are_the_matrix_and_new_ones_nothing(shape: tuple[int, int], rank: int | None) -> None:
    weight = matrix(*shape, rank).double()
    made, hidden = bases_of(weight), matrix(4, shape[1], seed=1).double()
    assert len(made.weight) == (rank or min(shape))
    torch.testing.assert_close(made(hidden), hidden @ weight.T, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        made.sigma, torch.linalg.svdvals(weight)[: len(made.weight)], rtol=1e-6, atol=1e-9
    )


def test_factors_multiply_to_what_the_bases_compute() -> None:
    made = bases_of(matrix(6, 8).double(), 3)
    with torch.no_grad():
        made.weight.add_(0.3 * torch.randn(6, generator=torch.Generator().manual_seed(1)))
        made.new_left.add_(matrix(6, 3, seed=9))
    made.hold(Decomposed(made.left, made.right).keep(torch.tensor([0, 2, 5])))
    made.weight.data = made.weight.data[[0, 2, 5]]
    expand, reduce = made.factors()
    hidden = matrix(4, 8, seed=1).double()
    assert expand.shape == (6, 6) and torch.linalg.matrix_rank(expand @ reduce) == 6
    torch.testing.assert_close(made(hidden), hidden @ (expand @ reduce).T)


@pytest.mark.parametrize("roots", [False, True])
def test_gradients_are_those_of_the_weights(roots: bool) -> None:
    """dL/dd = 2 sigma0 (1 + d) u^T (dL/dW) v, or dL/dw = 2 w u^T (dL/dW) v; by finite differences.

    Sensitivity is sigma dL/dsigma either way.
    """
    start = decomposed(matrix(5, 6), torch.float64)
    made, hidden = Bases(start, 0, torch.Generator(), roots).double(), matrix(7, 6, seed=1)
    with torch.no_grad():
        made.weight.add_(0.1)
    target = matrix(7, 5, seed=2).double()

    def loss(scale: torch.Tensor) -> torch.Tensor:
        return (((hidden @ made.right.T) * scale) @ made.left.T - target).square().sum()

    (made(hidden) - target).square().sum().backward()
    scale, step = made.scale.detach(), 1e-6
    for place in range(5):
        moved = [scale.clone(), scale.clone()]
        for sign, one in zip((1, -1), moved, strict=True):
            one[place] *= 1 + sign * step  # sigma_i moved by a share of itself
        slope = float((loss(moved[0]) - loss(moved[1])).detach()) / (2 * step)
        assert float(made.sensitivity()[place]) == pytest.approx(slope, rel=1e-4)
        sigma, weight = float(made.sigma[place].detach()), float(made.weight[place].detach())
        expected = slope / sigma * 2 * weight if roots else slope / float(scale[place]) * 2 * (1 + weight)
        assert float(made.weight.grad[place]) == pytest.approx(expected, rel=1e-4)
        if roots:
            assert sigma == pytest.approx(weight**2)
    assert made.left.grad is None and made.right.grad is None


@pytest.mark.parametrize("roots", [False, True])
def test_a_matrix_of_zeros_stays_one(roots: bool) -> None:
    made = Bases(decomposed(torch.zeros(5, 6), torch.float64), 0, torch.Generator(), roots).double()
    hidden = matrix(7, 6, seed=1)
    made(hidden).square().sum().backward()
    assert torch.equal(made(hidden), torch.zeros(7, 5).double())
    assert bool(torch.isfinite(made.weight).all()) and bool(torch.isfinite(made.sensitivity()).all())


@pytest.mark.parametrize("more", [{}, {"basis": "whitened"}, {"learn": "roots"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_bases_computes_what_it_did(
    family: str, more: dict[str, str], bases: Callable[[str], Path], rows: Path
) -> None:
    base = bases(family)
    source = Source.open(base)
    plan = make_plan(source, BaselConfig(data=rows, keep=0.5, select="all", extra_rank=2, **more), Inputs())
    model, _ = kanna.load(base, dtype="float32")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        before = model(ids).logits
        made = _put_bases(model, _Start(source, plan, _grams(model, plan)), plan)
        after = model(ids).logits
    assert set(made) == {matrix.name for matrix in plan.selected}
    assert float((before - after).abs().max()) <= 1e-4 * float(before.abs().max())
    trained = {name for name, _ in model.named_parameters() if "new_" in name or ".parts." in name}
    assert len(trained) == 3 * len(made)
    assert isinstance(model, nn.Module)
