"""Budgets are met and never exceeded; the global allocation is close to the true optimum."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kanna.errors import InputError
from kanna.linalg.allocation import Curve, Ranks, global_, least_keep, uniform

KEEPS = [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]


def curve(
    name: str, m: int, n: int, decay: float, weight: float, align: int = 8, pivot: bool = False
) -> Curve:
    energy = weight * torch.exp(-decay * torch.arange(min(m, n), dtype=torch.float64) / min(m, n))
    tails = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    ranks = tuple(range(align, min(m, n) + 1, align))
    cost = tuple(k * (m + n) - (k * k - m if pivot else 0) for k in ranks)
    return Curve(name, tails, ranks, cost, m * n)


def model(layers: int = 6, align: int = 8, pivot: bool = False) -> list[Curve]:
    """Matrices of a small language model, later layers mattering more."""
    shapes = {"q": (576, 576), "k": (192, 576), "gate": (1536, 576), "down": (576, 1536)}
    return [
        curve(f"{layer}.{role}", m, n, 1.0 + layer + 2 * (role == "q"), 2.0**layer, align, pivot)
        for layer in range(layers)
        for role, (m, n) in shapes.items()
    ]


def dense_cost(curves: list[Curve]) -> int:
    return sum(c.dense_cost for c in curves)


def total_cost(curves: list[Curve], ranks: Ranks) -> int:
    """Parameters of all matrices under an allocation."""
    return sum(
        c.dense_cost if (rank := ranks[c.name]) is None else c.cost[c.ranks.index(rank)] for c in curves
    )


def total_error(curves: list[Curve], ranks: Ranks) -> float:
    """Predicted error of all matrices under an allocation."""
    return sum(float(c.tails[rank]) for c in curves if (rank := ranks[c.name]) is not None)


@pytest.mark.parametrize("allocate", [uniform, global_])
@pytest.mark.parametrize("pivot", [False, True])
def test_budget_met_within_half_a_percent_and_never_exceeded(allocate, pivot: bool) -> None:  # type: ignore[no-untyped-def]
    curves = model(pivot=pivot)
    for keep in KEEPS:
        achieved = total_cost(curves, allocate(curves, keep)) / dense_cost(curves)
        assert keep - 0.005 <= achieved <= keep


@pytest.mark.parametrize("allocate", [uniform, global_])
def test_predicted_loss_falls_as_keep_rises(allocate) -> None:  # type: ignore[no-untyped-def]
    curves = model()
    errors = [total_error(curves, allocate(curves, keep)) for keep in [*KEEPS, 0.1][::-1]]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("allocate", [uniform, global_])
def test_keep_one_leaves_everything_dense(allocate) -> None:  # type: ignore[no-untyped-def]
    assert set(allocate(model(), 1.0).values()) == {None}


def test_no_choice_costs_as_much_as_dense() -> None:
    for allocate in (uniform, global_):
        for keep in (0.97, 0.9, 0.5):
            curves = model()
            ranks = allocate(curves, keep)
            for c in curves:
                rank = ranks[c.name]
                assert rank is None or c.cost[c.ranks.index(rank)] < c.dense_cost


def test_global_is_never_worse_than_uniform_and_respects_its_floor() -> None:
    curves = model()
    for keep in KEEPS:
        even, best = uniform(curves, keep), global_(curves, keep)
        assert total_error(curves, best) <= total_error(curves, even) * (1 + 1e-12)
        assert total_error(curves, global_(curves, keep, floor=0.0)) <= total_error(curves, best) * (1 + 1e-3)
        for name, rank in best.items():
            # The fill may have raised the uniform rank by a step or two before the floor is compared.
            assert rank is None or even[name] is None or rank >= 0.5 * (even[name] - 16)


def test_uniform_gives_every_matrix_a_like_share() -> None:
    curves = model()
    ranks = uniform(curves, 0.6)
    shares = [total_cost([c], ranks) / c.dense_cost for c in curves]
    assert min(shares) > 0.6 - 8 * 768 / (192 * 576) and max(shares) < 0.6 + 8 * 768 / (192 * 576)


def brute_force(curves: list[Curve], keep: float) -> float:
    budget = keep * dense_cost(curves)
    menus = [
        [(c.dense_cost, 0.0)] + [(p, float(c.tails[r])) for r, p in zip(c.ranks, c.cost, strict=True)]
        for c in curves
    ]
    return min(
        sum(error for _, error in picks)
        for picks in itertools.product(*menus)
        if sum(cost for cost, _ in picks) <= budget
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_against_brute_force(data: st.DataObject) -> None:
    curves = [
        curve(
            f"m{i}",
            data.draw(st.integers(3, 12)),
            data.draw(st.integers(3, 12)),
            data.draw(st.floats(0, 8)),
            data.draw(st.floats(0.1, 10)),
            align=1,
        )
        for i in range(3)
    ]
    keep = data.draw(st.floats(0.05, 0.99))
    if keep < least_keep(curves):
        for allocate in (uniform, global_):
            with pytest.raises(InputError, match="cannot be reached"):
                allocate(curves, keep)
        return
    ranks = global_(curves, keep, floor=0.0)
    assert total_cost(curves, ranks) <= keep * dense_cost(curves) * (1 + 1e-9)
    best = brute_force(curves, keep)
    # The Lagrangian optimum is off by at most the jump that did not fit, of one matrix.
    jump = max(0.0 if ranks[c.name] is None else float(c.tails[ranks[c.name]]) for c in curves)
    assert best * (1 - 1e-9) - 1e-12 <= total_error(curves, ranks) <= best + jump * (1 + 1e-9) + 1e-12


def test_brute_force_is_met_on_smooth_curves() -> None:
    """Many small steps: what the greedy fill cannot place is a fraction of one step."""
    curves = [curve(f"m{i}", 40, 60, 2.0 + i, 1.0 + i, align=4) for i in range(4)]
    for keep in (0.3, 0.5, 0.7):
        ours = total_error(curves, global_(curves, keep, floor=0.0))
        assert ours <= brute_force(curves, keep) * 1.05


def test_unreachable_keep_names_the_least() -> None:
    curves = model()
    least = least_keep(curves)
    for allocate in (uniform, global_):
        with pytest.raises(InputError) as caught:
            allocate(curves, least * 0.9)
        named = float(str(caught.value).split("at least ")[1].split(",")[0])
        assert least <= named <= least + 1e-4
        allocate(curves, named)


@pytest.mark.parametrize("keep", [0.0, -0.2, 1.01, float("nan")])
def test_keep_outside_its_range_is_refused(keep: float) -> None:
    for allocate in (uniform, global_):
        with pytest.raises(InputError, match=r"\(0, 1\]"):
            allocate(model(), keep)


def test_no_matrices_is_refused() -> None:
    with pytest.raises(InputError, match="no matrices"):
        uniform([], 0.5)


def test_a_matrix_too_small_for_its_share_does_not_break_the_budget() -> None:
    curves = [
        curve("tiny", 16, 16, 1.0, 1.0),
        curve("large", 256, 256, 1.0, 1.0),
    ]  # tiny has no rank below dense
    for keep in (0.3, 0.5):
        for allocate in (uniform, global_):
            ranks = allocate(curves, keep)
            assert ranks["tiny"] is None
            assert total_cost(curves, ranks) <= keep * dense_cost(curves)
