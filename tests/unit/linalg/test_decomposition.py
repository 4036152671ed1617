"""One decomposition for all ranks, against numpy's SVD and the theorem of Eckart, Young and Mirsky."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.decomposition import Decomposition, decompose, singular_gradient

F64 = torch.float64


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def orthogonal(seed: int, size: int) -> Tensor:
    return torch.linalg.qr(draw(seed, size, size)).Q


def with_values(values: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    r = min(m, n)
    return (orthogonal(seed, m)[:, :r] * values) @ orthogonal(seed + 1, n)[:r]


def falling(smallest: float, m: int, n: int) -> Tensor:
    """Singular values that fall geometrically from 1."""
    return with_values(smallest ** torch.linspace(0, 1, min(m, n), dtype=F64), m, n)


MATRICES = {
    "wide": draw(1, 40, 90),
    "tall": draw(2, 90, 40),
    "square": draw(3, 60, 60),
    "one row": draw(4, 1, 12),
    "one column": draw(5, 12, 1),
    "one number": draw(6, 1, 1),
    "rank deficient": draw(7, 40, 6) @ draw(8, 6, 70),
    "rank deficient, tall": draw(7, 70, 6) @ draw(8, 6, 40),
    "repeated values": with_values(torch.tensor([3.0] * 10 + [1.0] * 12 + [0.25] * 8, dtype=F64), 30, 50),
    "orthogonal": orthogonal(9, 30),
    "zero": torch.zeros(20, 30, dtype=F64),
    "some zero rows": draw(10, 20, 30) * (torch.arange(20) % 3 > 0)[:, None],
    "falling to 1e-5": falling(1e-5, 40, 60),
    "falling to 1e-9": falling(1e-9, 60, 40),
    "falling to 1e-14": falling(1e-14, 50, 50),
    "a few tiny": with_values(torch.tensor([1.0] * 20 + [1e-5, 1e-7, 1e-7, 1e-12], dtype=F64), 24, 40),
    "one dominant": draw(11, 30, 50) + 1e5 * draw(12, 30, 1) @ draw(13, 1, 50),
    "huge": draw(14, 20, 30) * 1e200,
    "minute": draw(15, 20, 30) * 1e-200,
}
named = pytest.mark.parametrize("name", MATRICES)


def reference(weight: Tensor) -> np.ndarray:
    return np.linalg.svd(weight.double().numpy(), compute_uv=False)


def numpy_top(weight: Tensor, rank: int) -> Tensor:
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    return torch.from_numpy((u[:, :rank] * s[:rank]) @ vh[:rank])


def some_ranks(weight: Tensor) -> list[int]:
    r = min(weight.shape)
    return sorted({0, 1, r // 3, r // 2, r - 1, r})


@named
def test_vectors_are_orthonormal_values_are_right_and_the_product_is_the_matrix(name: str) -> None:
    weight = MATRICES[name]
    parts, r = decompose(weight), min(weight.shape)
    assert parts.left.shape == (len(weight), r) and parts.right.shape == (r, weight.shape[1])
    assert {parts.left.dtype, parts.values.dtype, parts.right.dtype} == {F64}
    eye = torch.eye(r, dtype=F64)
    torch.testing.assert_close(parts.left.T @ parts.left, eye, atol=1e-11, rtol=0)
    torch.testing.assert_close(parts.right @ parts.right.T, eye, atol=1e-9, rtol=0)
    expected = torch.from_numpy(reference(weight))
    assert (parts.values.diff() <= 0).all() and (parts.values >= 0).all()
    torch.testing.assert_close(parts.values, expected, atol=1e-12 * float(expected[0]), rtol=0)
    torch.testing.assert_close(parts.top(r), weight, atol=1e-12 * float(expected[0]), rtol=0)


@named
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_errors_are_those_of_eckart_young_and_mirsky(name: str, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and name in ("huge", "minute"):
        pytest.skip("outside float32")
    weight = MATRICES[name].to(dtype)
    parts, values = decompose(weight), reference(weight)
    scale = values[0] or 1.0  # so that squares do not overflow
    for rank in some_ranks(weight):
        rest = (weight.double() - parts.top(rank)) / scale
        best = float(np.square(values[rank:] / scale).sum())
        total = float(np.square(values / scale).sum())
        assert float(rest.square().sum()) == pytest.approx(best, rel=1e-5, abs=1e-12 * total)
        following = values[rank] / scale if rank < len(values) else 0.0
        assert float(torch.linalg.matrix_norm(rest, 2)) == pytest.approx(following, abs=1e-11)


@pytest.mark.parametrize("name", ["wide", "tall", "square", "falling to 1e-5", "repeated values"])
def test_no_competitor_of_the_same_rank_is_better(name: str) -> None:
    weight = MATRICES[name]
    rank = min(weight.shape) // 4
    parts = decompose(weight)
    ours = float((weight - parts.top(rank)).norm())

    def projected(columns: Tensor) -> float:
        frame = torch.linalg.qr(columns).Q
        return float((weight - frame @ (frame.T @ weight)).norm())

    for seed in range(200):  # from neighbours of the optimum to random subspaces
        noise = draw(1000 + seed, len(weight), rank)
        competitor = projected(parts.left[:, :rank] + 10.0 ** (seed % 8 - 6) * noise)
        assert ours <= competitor * (1 + 1e-12) + 1e-12
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(weight, q=rank, niter=2)
    assert ours <= float((weight - (u * s) @ v.T).norm()) * (1 + 1e-6)


@named
def test_singular_values_of_the_top_part(name: str) -> None:
    weight = MATRICES[name]
    values = reference(weight)
    for rank in some_ranks(weight):
        kept = reference(decompose(weight).top(rank))
        np.testing.assert_allclose(kept[:rank], values[:rank], rtol=1e-5, atol=1e-11 * values[0])
        assert (kept[rank:] <= 1e-11 * values[0]).all()


@named
def test_top_and_bottom_add_up_and_are_orthogonal(name: str) -> None:
    weight = MATRICES[name]
    parts, values = decompose(weight), reference(weight)
    scale = values[0] or 1.0
    for rank in some_ranks(weight):
        top, bottom = parts.top(rank) / scale, parts.bottom(rank) / scale
        torch.testing.assert_close(top + bottom, weight / scale, atol=1e-11, rtol=0)
        assert abs(float((top * bottom).sum())) <= 1e-11
        following = values[rank] / scale if rank < len(values) else 0.0
        assert float(torch.linalg.matrix_norm(bottom, 2)) == pytest.approx(following, abs=1e-11)


@pytest.mark.parametrize("name", [name for name in MATRICES if name not in ("huge", "minute")])
def test_idempotent_nested_and_equivariant(name: str) -> None:
    """Of the matrix itself where the cut falls into a gap; of its error everywhere."""
    weight = MATRICES[name]
    values = reference(weight)
    turn = orthogonal(77, len(weight))
    for rank in some_ranks(weight)[1:]:
        top = decompose(weight).top(rank)
        norm = max(float(weight.norm()), 1e-300)
        once_more = decompose(top).top(rank)
        torch.testing.assert_close(once_more, top, atol=1e-10 * norm, rtol=0)
        nested = decompose(top).top(max(1, rank // 2))
        flipped = decompose(weight.T).top(rank).T
        turned = turn.T @ decompose(turn @ weight).top(rank)
        for got, k in ((nested, max(1, rank // 2)), (flipped, rank), (turned, rank)):
            best = float(np.sqrt(np.square(values[k:]).sum()))
            assert float((weight - got).norm()) == pytest.approx(best, rel=1e-5, abs=1e-9 * norm)
            if k == len(values) or values[k - 1] - values[k] > 1e-4 * values[0]:
                torch.testing.assert_close(got, numpy_top(weight, k), atol=1e-5 * norm, rtol=0)


@pytest.mark.parametrize("smallest", [0.5, 1e-2, 1e-4, 1e-6, 1e-8, 1e-12])
def test_the_gram_route_equals_the_svd_however_small_the_values(smallest: float) -> None:
    weight = falling(smallest, 60, 100)
    parts = decompose(weight)
    for rank in range(0, 61, 5):
        torch.testing.assert_close(parts.top(rank), numpy_top(weight, rank), atol=1e-9, rtol=0)


@named
def test_factors_multiply_to_the_top_part_and_share_its_size(name: str) -> None:
    weight = MATRICES[name]
    parts = decompose(weight)
    for rank in some_ranks(weight):
        expand, reduce = parts.factors(rank)
        assert expand.shape == (len(weight), rank) and reduce.shape == (rank, weight.shape[1])
        assert expand.is_contiguous() and reduce.is_contiguous()
        scale = max(float(parts.values[0]), 1e-300)
        torch.testing.assert_close(expand @ reduce / scale, parts.top(rank) / scale, atol=1e-11, rtol=0)
        torch.testing.assert_close(expand.norm(dim=0), reduce.norm(dim=1), atol=0, rtol=1e-8)


def test_between_sums_the_chosen_components() -> None:
    weight = MATRICES["wide"]
    parts = decompose(weight)
    u, s, vh = np.linalg.svd(weight.numpy(), full_matrices=False)
    chosen = [3, 0, 17, 39]
    expected = sum(s[i] * np.outer(u[:, i], vh[i]) for i in chosen)
    for indices in (chosen, torch.tensor(chosen), tuple(chosen)):
        torch.testing.assert_close(parts.between(indices), torch.from_numpy(expected), atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.between(range(5)), parts.top(5), atol=1e-12, rtol=0)
    assert torch.equal(parts.between([]), torch.zeros_like(weight))
    for wrong in ([40], [-1], [2, 2]):
        with pytest.raises(InputError, match="once each"):
            parts.between(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_is_decomposed_in_float64(dtype: torch.dtype) -> None:
    weight = (0.02 * draw(20, 30, 50)).to(dtype)
    parts = decompose(weight)
    torch.testing.assert_close(parts.values, torch.from_numpy(reference(weight)), atol=1e-14, rtol=0)
    torch.testing.assert_close(parts.top(30), weight.double(), atol=1e-14, rtol=0)


def test_the_same_weight_gives_the_same_bits_and_is_left_alone() -> None:
    weight = torch.nn.Parameter(draw(21, 50, 50))
    before = weight.detach().clone()
    first, second = decompose(weight), decompose(weight)
    for name in ("left", "values", "right"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not getattr(first, name).requires_grad
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9), (1, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-6), (torch.float32, 1e-3)])
def test_singular_gradient_is_the_finite_difference(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    weight, inputs, targets = draw(30, *shape), draw(31, shape[1], 20), draw(32, shape[0], 20)

    def loss(at: Tensor) -> Tensor:
        return (torch.tanh(at @ inputs.to(at.dtype)) - targets.to(at.dtype)).square().sum()

    leaf = weight.to(dtype).requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    parts = decompose(leaf)
    found = singular_gradient(parts, leaf.grad)
    assert found.shape == parts.values.shape and found.dtype == F64
    for i in range(min(shape)):
        values, step = parts.values, torch.zeros_like(parts.values)
        step[i] = 1e-5
        above, below = ((parts.left * (values + s)) @ parts.right for s in (step, -step))
        numeric = float(loss(above) - loss(below)) / 2e-5
        assert float(found[i]) == pytest.approx(
            numeric, rel=tolerance, abs=tolerance * float(found.abs().max())
        )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12))
def test_singular_gradient_is_how_singular_values_move(seed: int, m: int, n: int) -> None:
    """d s_i(W + t G) / dt = u_i^T G v_i, from numpy's singular values alone."""
    weight = with_values(torch.arange(min(m, n), 0, -1, dtype=F64), m, n, seed)
    direction = draw(seed + 2, m, n)
    moved = (reference(weight + 1e-6 * direction) - reference(weight - 1e-6 * direction)) / 2e-6
    found = singular_gradient(decompose(weight), direction)
    np.testing.assert_allclose(found.numpy(), moved, atol=1e-6 * float(direction.norm()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_numbers_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    weight = draw(40, 5, 6).to(dtype)
    weight[2, 3] = bad
    with pytest.raises(InputError, match="1 of the 30 numbers"):
        decompose(weight)


def test_what_is_no_matrix_of_floats_is_refused() -> None:
    for weight in (draw(41, 5), draw(42, 2, 3, 4), torch.zeros(0, 4), torch.ones(3, 3, dtype=torch.int64)):
        with pytest.raises(InputError, match="a matrix of floating-point numbers"):
            decompose(weight)


def test_ranks_and_gradients_that_do_not_fit_are_refused() -> None:
    parts: Decomposition = decompose(draw(43, 5, 8))
    for rank in (-1, 6):
        for method in (parts.top, parts.bottom, parts.factors):
            with pytest.raises(InputError, match=f"rank {rank} was asked"):
                method(rank)
    with pytest.raises(InputError, match=r"\(5, 8\)"):
        singular_gradient(parts, draw(44, 8, 5))
