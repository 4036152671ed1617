"""What the CPU computes, a CUDA device computes too; on other machines these tests are skipped."""

import pytest
import torch
from torch import Tensor

from kanna.forms import LowRank, Pivot
from kanna.linalg.decomposition import decompose
from kanna.linalg.pivot import pivot_factors
from kanna.linalg.whitening import anchored_target, basis, factors, with_ridge

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(24, 40), (40, 24), (32, 32)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(n: int, inputs: int) -> Tensor:
    x = draw(n, inputs, seed=1)
    return x @ x.T


def close(found: Tensor, expected: Tensor) -> None:
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("seen", ["all", "diagonal", "singular", "none"])
@pytest.mark.parametrize("outputs", [False, True])
def test_low_rank_optimum(m: int, n: int, seen: str, outputs: bool) -> None:
    weight, whole = draw(m, n), statistics(n, n // 2 if seen == "singular" else 3 * n)
    gram = {"all": whole, "diagonal": whole.diagonal(), "singular": whole, "none": None}[seen]
    row_metric = statistics(m, 2 * m) if outputs else None
    moved = [None if t is None else t.to(DEVICE) for t in (gram, row_metric)]
    ours, expected = basis(weight.to(DEVICE), *moved), basis(weight, gram, row_metric)
    torch.testing.assert_close(ours.tails().cpu(), expected.tails(), rtol=1e-8, atol=1e-8 * expected.total)
    rank = min(m, n) // 3
    expand, reduce = factors(weight.to(DEVICE), ours, rank)
    plain_expand, plain_reduce = factors(weight, expected, rank)
    close(expand @ reduce, plain_expand @ plain_reduce)


def test_anchored_target() -> None:
    weight, gram = draw(24, 40), statistics(40, 30)
    cross = gram + 0.1 * draw(40, 40, seed=2)
    moved = (t.to(DEVICE) for t in (weight, cross, gram))
    close(anchored_target(*moved, 1e-3), anchored_target(weight, cross, gram, 1e-3))
    close(with_ridge(gram.to(DEVICE), 0.1), with_ridge(gram, 0.1))


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_decomposition(m: int, n: int) -> None:
    weight = draw(m, n)
    ours, expected = decompose(weight.to(DEVICE)), decompose(weight)
    close(ours.values, expected.values)
    close(ours.top(5), expected.top(5))
    close(ours.between([1, 7]), expected.between([1, 7]))


def test_pivots() -> None:
    expand, reduce = draw(24, 6), draw(6, 40, seed=3)
    order, rows, mix = pivot_factors(expand.to(DEVICE), reduce.to(DEVICE))
    close(torch.cat([rows, mix @ rows])[order], expand @ reduce)


@pytest.mark.parametrize("form", [LowRank(6), Pivot(6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forms_compute_their_dense_weight(form: LowRank | Pivot, dtype: torch.dtype) -> None:
    module = form.build(24, 40, bias=True, dtype=torch.float32)
    for index, parameter in enumerate(module.parameters()):
        parameter.data = draw(*parameter.shape, seed=index).float() / 6
    x = draw(3, 40, seed=9).float()
    expected = module(x)
    found = module.to(DEVICE, dtype)(x.to(DEVICE, dtype))
    assert found.device.type == DEVICE and found.dtype == dtype
    bound = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found.float().cpu(), expected, rtol=bound, atol=bound)
