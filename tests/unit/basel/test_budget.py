"""Which bases stay, against the plainest way to say it."""

import random

import pytest
import torch

from kanna.methods.basel.bases import Bases, decomposed
from kanna.methods.basel.budget import Size, kept_by_share, kept_by_sigma, kept_by_worth, least, target_at
from kanna.methods.basel.events import Events, Schedule
from kanna.methods.basel.importance import Averages
from kanna.training.optimiser import Group, Optimiser

SIZES = {"a": Size(12, 12, 1), "b": Size(6, 20, 2), "c": Size(20, 6, 0), "d": Size(16, 12, 1)}


def scores(seed: int, kind: str = "random") -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, size in SIZES.items():
        values = torch.rand(min(size.m, size.n), generator=draw, dtype=torch.float64)
        if kind == "ties":
            values = (values * 3).floor()
        if kind == "zeros":
            values[values < 0.7] = 0.0
        made[name] = values
    return made


def naive(given: dict[str, torch.Tensor], trained: float, stored: float, last: bool) -> dict[str, list[int]]:
    """Drop the least worth per parameter, one after the other, until the count is nearest."""
    kept = {name: sorted(range(len(values))) for name, values in given.items()}

    def counts() -> tuple[int, int]:
        sizes = [(SIZES[name], len(places)) for name, places in kept.items()]
        return sum(int(s.as_bases(k)) for s, k in sizes), sum(s.stored(k) for s, k in sizes)

    order = sorted(
        (float(values[i]) / (SIZES[name].m + SIZES[name].n), number, rank, name, int(i))
        for number, (name, values) in enumerate(given.items())
        for rank, i in enumerate(values.argsort(stable=True)[:-1])
    )
    states = [({n: list(p) for n, p in kept.items()}, counts())]
    for _, _, _, name, place in order:
        kept[name].remove(place)
        states.append(({n: list(p) for n, p in kept.items()}, counts()))
    at_end = min(range(len(states)), key=lambda i: abs(states[i][1][1] - stored))
    chosen = at_end
    if not last:
        chosen = min(at_end, min(range(len(states)), key=lambda i: abs(states[i][1][0] - trained)))
    return states[chosen][0]


@pytest.mark.parametrize("kind", ["random", "ties", "zeros"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
def test_all_matrices_are_ranked_together(kind: str, share: float) -> None:
    for seed in range(5):
        given = scores(seed, kind)
        trained = sum(int(size.as_bases(min(size.m, size.n))) for size in SIZES.values())
        stored = sum(size.dense for size in SIZES.values())
        for last in (False, True):
            mine = kept_by_worth(given, SIZES, share * trained, share * stored, last)
            theirs = naive(given, share * trained, share * stored, last)
            for name, places in mine.items():
                if last and SIZES[name].stays_dense(len(theirs[name])):
                    assert len(places) == len(given[name])
                else:
                    assert places.tolist() == theirs[name], (seed, name)


def test_the_last_event_meets_the_budget_and_none_goes_below() -> None:
    draw = random.Random(0)
    dense = sum(size.dense for size in SIZES.values())
    for seed in range(20):
        wanted = draw.uniform(least(SIZES) / dense, 1.0) * dense
        kept = kept_by_worth(scores(seed), SIZES, 0.0, wanted, last=True)
        count = sum(SIZES[name].stored(len(places)) for name, places in kept.items())
        assert abs(count - wanted) <= 32  # half of what the dearest basis costs, and a step over a dense one
        early = kept_by_worth(scores(seed), SIZES, 0.0, wanted, last=False)
        assert sum(SIZES[n].stored(len(p)) for n, p in early.items()) >= wanted - 32
        assert all(len(places) >= 1 for places in kept.values())


@pytest.mark.parametrize("share", [0.45, 0.6, 0.9])
def test_the_papers_rule_keeps_the_largest_of_one_share(share: float) -> None:
    given = {name: values.sort(descending=True).values + 0.01 for name, values in scores(1).items()}
    dense = sum(size.dense for size in SIZES.values())
    kept = kept_by_share(given, SIZES, 0.0, share * dense, last=True)
    count = sum(SIZES[name].stored(len(places)) for name, places in kept.items())
    assert abs(count - share * dense) <= 0.12 * dense  # a share moves several matrices at once
    parts = []
    for name, places in kept.items():
        assert places.tolist() == list(range(len(places)))  # the largest ones
        sums = given[name].cumsum(0) / given[name].sum()
        parts.append((float(sums[len(places) - 2]) if len(places) > 1 else 0.0, float(sums[len(places) - 1])))
    assert max(low for low, _ in parts) <= min(high for _, high in parts) + 1e-9  # one share explains all


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.45, 0.6, 0.9])
def test_no_event_of_the_papers_rule_leaves_less_than_the_last_shall(share: float, seed: int) -> None:
    """However few bases it may have: what is gone could not come back at the end."""
    given = {name: values + 0.01 for name, values in scores(seed).items()}
    wanted = share * sum(size.dense for size in SIZES.values())

    def count(kept: dict[str, torch.Tensor]) -> int:
        return sum(SIZES[name].stored(len(places)) for name, places in kept.items())

    early = kept_by_share(given, SIZES, 0.0, wanted, last=False)
    last = kept_by_share(given, SIZES, 0.0, wanted, last=True)
    assert count(early) >= wanted
    assert abs(count(last) - wanted) <= count(early) - wanted  # one of the two beside it
    one_less = {name: places[1:] if len(places) > 1 else places for name, places in early.items()}
    assert count(one_less) < wanted


def test_events_are_as_many_as_said_and_end_where_they_shall() -> None:
    for first, steps, events in ((10, 60, 7), (1, 21, 20), (5, 6, 1), (90, 210, 100)):
        schedule = Schedule(first, steps, events, 1000, 250)
        seen = [schedule.event_after(step) for step in range(steps)]
        assert [event for event in seen if event is not None] == list(range(1, events + 1))
        assert seen.index(events) + 1 == schedule.last_step
    assert target_at(0, 5, 1000, 250) == 1000 and target_at(5, 5, 1000, 250) == pytest.approx(250)
    assert target_at(2, 4, 1000, 250) == pytest.approx(500)


@pytest.mark.parametrize("size", [64, 256, 1024])
@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_without_training_the_papers_events_end_at_its_share(size: int, share: float) -> None:
    """The published loop keeps 64 of 64 where 25 hold half the sum: whole bases must be carried on."""
    sigma = torch.arange(1, size + 1, dtype=torch.float64) ** -0.3
    kept, held, events = torch.arange(size), {"a": 1.0}, 100
    for event in range(1, events + 1):
        places, held = kept_by_sigma({"a": sigma[kept]}, held, share ** (event / events))
        assert set(kept[places["a"]].tolist()) <= set(kept.tolist())
        kept = kept[places["a"]]
    wanted = int((sigma.cumsum(0) < share * sigma.sum()).sum()) + 1
    assert abs(len(kept) - wanted) <= 1
    assert kept.tolist() == list(range(len(kept)))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_without_training_what_is_left_is_the_truncated_decomposition(share: float) -> None:
    """The paper's events over weights that nothing changed: off by sqrt(sum of the dropped sigma^2)."""
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = Bases(decomposed(weight, torch.float64), 0, torch.Generator()).double()
    size, adam = {"a": Size(48, 64, 0)}, Optimiser([Group({"a:weight": made.weight}, 0.1)])
    schedule = Schedule(1, 21, 20, 48 * 112, 0, share)
    events = Events({"a": made}, size, schedule, Averages("sigma"), lambda name: pytest.fail(name))
    for step in range(21):
        events.after(step, adam)
    expand, reduce = made.factors()
    sigma = torch.linalg.svdvals(weight)
    rank = len(made.weight)
    assert abs(rank - int((sigma.cumsum(0) < share * sigma.sum()).sum()) - 1) <= 1
    error = float((weight - expand @ reduce).norm())
    assert error == pytest.approx(float(sigma[rank:].square().sum().sqrt()), rel=1e-5)


def test_a_share_of_one_keeps_all_and_a_tiny_one_keeps_one() -> None:
    sigma = {"a": torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0])}
    kept, held = kept_by_sigma(sigma, {"a": 1.0}, 1.0)
    assert held["a"] == 1.0 and set(kept["a"].tolist()) >= {0, 1, 2}
    assert kept_by_sigma(sigma, {"a": 1.0}, 1e-9)[0]["a"].tolist() == [0]
