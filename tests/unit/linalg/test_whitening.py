"""The low-rank optimum under input and output metrics, against float64 references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.whitening import (
    anchored_target,
    balanced,
    basis,
    factors,
    with_ridge,
)

F64 = torch.float64
SHAPES = [(48, 48), (32, 80), (80, 32), (1, 9), (9, 1)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def anisotropic(seed: int, n: int, tokens: int, decay: float = 3.0) -> Tensor:
    """Inputs (n, tokens) whose directions span e^decay in scale."""
    scale = torch.exp(-torch.linspace(0, decay, n, dtype=F64))
    mixing = torch.linalg.qr(draw(seed + 1, n, n)).Q
    return mixing @ (scale[:, None] * draw(seed, n, tokens))


def loss(weight: Tensor, approx: Tensor, inputs: Tensor) -> float:
    return float(((weight - approx) @ inputs).square().sum())


def approximate(weight: Tensor, rank: int, **metric: Tensor) -> Tensor:
    expand, reduce = factors(weight, basis(weight, **metric), rank)
    return expand @ reduce


def cholesky_route(weight: Tensor, gram: Tensor, rank: int) -> Tensor:
    """The published form: factorise, truncate, undo."""
    lower = torch.linalg.cholesky(gram)
    u, s, vh = torch.linalg.svd(weight @ lower, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ torch.linalg.solve_triangular(lower, vh[:rank], upper=False, left=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_predicted_loss_is_the_measured_loss_in_float32(shape: tuple[int, int]) -> None:
    m, n = shape
    inputs = anisotropic(3, n, 4 * n)
    weight = draw(4, m, n).float()
    parts = basis(weight, (inputs @ inputs.T).float())
    tails = parts.tails()
    for rank in range(1, min(m, n)):
        expand, reduce = factors(weight, parts, rank, torch.float32)
        measured = loss(weight.double(), expand.double() @ reduce.double(), inputs)
        assert measured == pytest.approx(float(tails[rank]), rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_are_orthonormal_and_sorted(shape: tuple[int, int]) -> None:
    m, n = shape
    inputs = anisotropic(5, n, 3 * n)
    parts = basis(draw(6, m, n), inputs @ inputs.T)
    held = min(m, n)
    assert parts.left.shape == (m, held)
    torch.testing.assert_close(parts.left.T @ parts.left, torch.eye(held, dtype=F64), atol=1e-12, rtol=0)
    assert (parts.energy.diff() <= 0).all() and (parts.energy >= 0).all()
    assert parts.tails()[-1] == 0 and float(parts.tails()[0]) == pytest.approx(parts.total)


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    weight = draw(7, *shape)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(basis(weight).energy, s.square(), atol=1e-10, rtol=1e-10)
    rank = max(1, min(shape) // 2)
    torch.testing.assert_close(
        approximate(weight, rank), (u[:, :rank] * s[:rank]) @ vh[:rank], atol=1e-9, rtol=0
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 24), st.integers(4, 24), st.floats(0, 6))
def test_whitened_is_never_worse_than_asvd_or_plain(seed: int, m: int, n: int, decay: float) -> None:
    inputs = anisotropic(seed, n, 5 * n, decay)
    weight = draw(seed + 2, m, n)
    scale = inputs.abs().mean(dim=1).sqrt()
    for rank in range(1, min(m, n)):
        whitened = loss(weight, approximate(weight, rank, gram=inputs @ inputs.T), inputs)
        for other in (approximate(weight, rank, gram=scale.square()), approximate(weight, rank)):
            assert whitened <= loss(weight, other, inputs) * (1 + 1e-9)


@pytest.mark.parametrize("shape", [(48, 48), (32, 80), (80, 32)])
def test_equals_the_cholesky_route_where_that_exists(shape: tuple[int, int]) -> None:
    m, n = shape
    inputs = anisotropic(8, n, 4 * n)
    weight, gram = draw(9, m, n), inputs @ inputs.T
    for rank in (1, 7, 20, 31):
        theirs = loss(weight, cholesky_route(weight, gram, rank), inputs)
        assert loss(weight, approximate(weight, rank, gram=gram), inputs) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("shape", [(48, 48), (32, 80), (80, 32)])
@pytest.mark.parametrize("trouble", ["few tokens", "dead channel", "outliers", "one token", "no input"])
def test_survives_statistics_that_cholesky_does_not(shape: tuple[int, int], trouble: str) -> None:
    m, n = shape
    inputs = anisotropic(10, n, n // 3 if trouble == "few tokens" else 3 * n)
    if trouble == "one token":
        inputs = inputs[:, :1]
    if trouble == "no input":
        inputs = inputs * 0
    if trouble == "dead channel":
        inputs[5] = 0
    if trouble == "outliers":
        inputs[[2, 11]] *= 1e6
    weight = draw(11, m, n)
    rank = 20
    approx = approximate(weight, rank, gram=inputs @ inputs.T)
    # The best possible error, from the outputs themselves.
    best = float(torch.linalg.svdvals(weight @ inputs)[rank:].square().sum())
    rounding = 1e-24 * float((weight @ inputs).square().sum())
    assert torch.isfinite(approx).all()
    assert loss(weight, approx, inputs) <= best * (1 + 1e-5) + rounding
    if trouble != "outliers":  # predicted to rounding of the total; outliers have a sharper test of their own
        slack = 1e-14 * float((weight @ inputs).square().sum())
        assert float(basis(weight, inputs @ inputs.T).tails()[rank]) == pytest.approx(
            best, rel=1e-4, abs=slack
        )


def test_diagonal_gram_equals_the_full_one() -> None:
    weight, scale = draw(12, 20, 30), draw(13, 30).square()
    torch.testing.assert_close(
        approximate(weight, 8, gram=scale), approximate(weight, 8, gram=torch.diag(scale)), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_row_metric_minimises_the_weighted_error(shape: tuple[int, int]) -> None:
    m, n = shape
    weight, root = draw(14, m, n), draw(15, m, 2 * m)
    inputs = anisotropic(16, n, 4 * n)
    metric = root @ root.T
    parts = basis(weight, inputs @ inputs.T, metric)
    half = torch.linalg.cholesky(metric).T
    for rank in (1, 5, 15):
        expand, reduce = factors(weight, parts, rank)
        measured = float((half @ (weight - expand @ reduce) @ inputs).square().sum())
        best = float(torch.linalg.svdvals(half @ weight @ inputs)[rank:].square().sum())
        assert (
            measured == pytest.approx(best, rel=1e-8) == pytest.approx(float(parts.tails()[rank]), rel=1e-8)
        )


def test_diagonal_row_metric_is_fwsvd() -> None:
    weight, d = draw(17, 20, 30), draw(18, 20).abs() + 0.1
    u, s, vh = torch.linalg.svd(d[:, None] * weight, full_matrices=False)
    expected = ((u[:, :6] * s[:6]) @ vh[:6]) / d[:, None]
    torch.testing.assert_close(approximate(weight, 6, row_metric=d), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        approximate(weight, 6, row_metric=torch.diag(d.square())), expected, atol=1e-8, rtol=0
    )


def test_singular_row_metric_gives_finite_factors_and_the_best_weighted_error() -> None:
    weight, root = draw(19, 24, 30), draw(20, 24, 10)
    inputs = anisotropic(21, 30, 90)
    approx = approximate(weight, 6, gram=inputs @ inputs.T, row_metric=root @ root.T)
    best = float(torch.linalg.svdvals(root.T @ weight @ inputs)[6:].square().sum())
    assert torch.isfinite(approx).all()
    assert float((root.T @ (weight - approx) @ inputs).square().sum()) == pytest.approx(best, rel=1e-4)


def test_dead_output_under_fwsvd_stays_finite() -> None:
    d = draw(22, 20).abs()
    d[3] = 0
    assert torch.isfinite(approximate(draw(23, 20, 30), 5, row_metric=d)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 20), st.integers(4, 20), st.floats(0.0, 1.0))
def test_anchored_is_the_optimum_on_shifted_inputs(seed: int, m: int, n: int, shift: float) -> None:
    inputs = anisotropic(seed, n, 6 * n)
    shifted = inputs + shift * anisotropic(seed + 5, n, 6 * n)
    weight, gram_hat = draw(seed + 9, m, n), shifted @ shifted.T
    target = anchored_target(weight, inputs @ shifted.T, gram_hat, ridge=0.0)
    for rank in (1, min(m, n) // 2):
        ours = approximate(target, rank, gram=gram_hat)
        sequential = approximate(weight, rank, gram=gram_hat)
        original = approximate(weight, rank, gram=inputs @ inputs.T)
        error = float((weight @ inputs - ours @ shifted).square().sum())
        for other in (sequential, original):
            assert error <= float((weight @ inputs - other @ shifted).square().sum()) * (1 + 1e-9) + 1e-12


def test_anchored_without_shift_is_the_weight_itself() -> None:
    inputs, weight = anisotropic(24, 20, 8), draw(25, 10, 20)
    gram = inputs @ inputs.T
    assert torch.equal(anchored_target(weight, gram, gram, ridge=0.0), weight)
    assert torch.equal(anchored_target(weight, gram, gram, ridge=1e-3), weight)


def test_anchored_survives_singular_statistics() -> None:
    inputs = anisotropic(26, 30, 12)
    shifted = inputs + 0.1 * anisotropic(27, 30, 12)
    weight = draw(28, 10, 30)
    target = anchored_target(weight, inputs @ shifted.T, shifted @ shifted.T, ridge=0.0)
    torch.testing.assert_close(target @ shifted, weight @ inputs, atol=1e-7, rtol=0)


def test_anchored_solves_the_ridge_problem() -> None:
    inputs = anisotropic(29, 12, 40)
    shifted = inputs + 0.3 * anisotropic(30, 12, 40)
    weight, gram_hat = draw(31, 7, 12), shifted @ shifted.T
    lam = 0.05 * float(gram_hat.diagonal().mean()) * torch.eye(12, dtype=F64)
    expected = weight @ (inputs @ shifted.T + lam) @ torch.linalg.inv(gram_hat + lam)
    torch.testing.assert_close(anchored_target(weight, inputs @ shifted.T, gram_hat, 0.05), expected)
    torch.testing.assert_close(with_ridge(gram_hat, 0.05), gram_hat + lam)


def test_balancing_keeps_the_product_bit_for_bit() -> None:
    weight = draw(36, 20, 30).float() * 100
    expand, reduce = factors(weight, basis(weight), 8, torch.float32)
    first, second = balanced(expand, reduce)
    assert torch.equal(first @ second, expand @ reduce)
    ratio = first.norm(dim=0) / second.norm(dim=1)
    assert (ratio > 0.49).all() and (ratio < 2.01).all()


@pytest.mark.parametrize("amplitude", [1e2, 1e4, 1e6, 1e7])
def test_outlier_channels_do_not_cost_the_others_their_accuracy(amplitude: float) -> None:
    inputs = anisotropic(50, 96, 400)
    inputs[[3, 40, 77]] *= amplitude
    weight = draw(51, 64, 96)
    parts = basis(weight, inputs @ inputs.T)
    singular = torch.linalg.svdvals(weight @ inputs)
    torch.testing.assert_close(parts.left.T @ parts.left, torch.eye(64, dtype=F64), atol=1e-12, rtol=0)
    assert (parts.energy.diff() <= 0).all()
    for rank in (4, 20, 50, 60):
        best = float(singular[rank:].square().sum())
        assert float(parts.tails()[rank]) == pytest.approx(best, rel=1e-4)
        expand, reduce = factors(weight, parts, rank)
        assert loss(weight, expand @ reduce, inputs) == pytest.approx(best, rel=1e-5)


def test_max_rank_keeps_the_whole_spectrum() -> None:
    weight = draw(37, 20, 30)
    parts = basis(weight, max_rank=5)
    assert parts.left.shape == (20, 5)
    torch.testing.assert_close(parts.energy, basis(weight).energy)
    with pytest.raises(InputError, match="rank 6"):
        factors(weight, parts, 6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    weight = draw(38, 6, 8)
    weight[1, 2] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        basis(weight)


def test_shapes_that_do_not_fit_are_refused() -> None:
    weight = draw(39, 6, 8)
    with pytest.raises(InputError, match="gram"):
        basis(weight, draw(40, 6, 6))
    with pytest.raises(InputError, match="row_metric"):
        basis(weight, None, draw(41, 8))
    with pytest.raises(InputError, match=r"\(m, n\)"):
        basis(weight[0])


WEIGHTS = ["zero", "constant", "rank one", "faint", "full"]
METRICS = [*WEIGHTS, "vanishing"]


def of_kind(kind: str, seed: int, rows: int, columns: int) -> Tensor:
    """(rows, columns): nothing, one row again and again, one direction, faint, too faint to be squared."""
    if kind == "zero":
        return torch.zeros(rows, columns, dtype=F64)
    if kind == "constant":
        return draw(seed, 1, columns).expand(rows, columns).clone()
    if kind == "rank one":
        return torch.outer(draw(seed, rows), draw(seed + 1, columns))
    return draw(seed, rows, columns) * {"faint": 1e-30, "vanishing": 1e-160, "full": 1.0}[kind]


@settings(deadline=None, max_examples=60)
@given(
    weight=st.sampled_from(WEIGHTS),
    inputs=st.sampled_from(METRICS),
    outputs=st.sampled_from(METRICS),
    diagonal=st.booleans(),
    shape=st.sampled_from([(6, 9), (9, 6)]),
)
def test_degenerate_weights_and_metrics_give_finite_factors_that_are_optimal(
    weight: str, inputs: str, outputs: str, diagonal: bool, shape: tuple[int, int]
) -> None:
    m, n = shape
    w, x, g = of_kind(weight, 1, m, n), of_kind(inputs, 2, 40, n), of_kind(outputs, 4, 40, m)
    gram, felt = x.T @ x, g.T @ g
    metric = felt.diagonal().sqrt() if diagonal else felt
    parts = basis(w, gram, metric)
    said = torch.eye(n, dtype=F64) if gram.diagonal().max() < 1e-290 else gram
    root = metric.diag() if diagonal else square_root(metric)
    root = torch.eye(m, dtype=F64) if (metric if diagonal else felt.diagonal()).max() < 1e-290 else root
    values = torch.linalg.svdvals(root @ w @ square_root(said)).square()
    energy = values if said is gram else torch.zeros_like(values)
    torch.testing.assert_close(parts.energy, energy, rtol=1e-6, atol=1e-9 * float(values.sum()) + 1e-290)
    for rank in range(1, min(m, n)):
        expand, reduce = factors(w, parts, rank)
        assert expand.isfinite().all() and reduce.isfinite().all()
        first, second = balanced(expand, reduce)
        assert first.isfinite().all() and second.isfinite().all()
        lost = float((root @ (w - expand @ reduce) @ square_root(said)).square().sum())
        assert lost <= float(values[rank:].sum()) * (1 + 1e-6) + 1e-9 * float(values.sum()) + 1e-290


def square_root(metric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(metric)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
