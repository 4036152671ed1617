"""Choosing, halving, composing, the Pareto set, the space: pure functions against plain definitions."""

import random
from itertools import chain, product

import family_configs
import pytest

from kanna.methods.laser.budget import Budget
from kanna.methods.laser.choose import PUBLISHED, choose, compose, order, pareto
from kanna.methods.laser.results import Trial
from kanna.methods.laser.search_config import RHOS
from kanna.methods.laser.space import space
from kanna.models.inventory import inventory
from kanna.search.halving import halve, survivors
from kanna.tasks.data.parts import by_groups, parts_of
from kanna.tasks.data.rows import Row
from kanna.tasks.journal import Tally

BASE = Trial(
    edit="", layer=-1, role="", matrix="", rho="", rank=0, blocks=1, rows=100, accuracy=0.5, log_loss=2.0,
    consistency=0.4, perplexity=None,
)  # fmt: skip


def trial(
    name: str, accuracy: float, log_loss: float = 2.0, consistency: float | None = 0.4, **given
) -> Trial:
    fields = {"layer": 0, "matrix": name, "perplexity": None} | given
    return Trial(
        edit=name, role="down", rho="0.5", rank=5, blocks=1, rows=100, accuracy=accuracy, log_loss=log_loss,
        consistency=consistency, **fields,
    )  # fmt: skip


def drawn(count: int, seed: int) -> list[Trial]:
    draw = random.Random(seed)
    return [
        trial(f"e{i}", draw.randrange(30, 70) / 100, draw.randrange(5) / 2, draw.choice([0.2, 0.4, 0.6]))
        for i in range(count)
    ]


def test_the_most_accurate_wins_and_ties_go_to_the_smaller_log_loss():
    trials = [trial("a", 0.6, 1.9), trial("b", 0.7, 1.8), trial("c", 0.7, 1.7)]
    assert choose(BASE, trials)[0].edit == "c"


@pytest.mark.parametrize("accuracy", [0.4, 0.5])
def test_the_base_wins_ties(accuracy):
    trials = [trial("a", accuracy, 0.1, 1.0)]
    assert choose(BASE, trials)[0] == BASE
    assert choose(BASE, [])[0] == BASE
    # The published rule never takes the model as it is.
    assert choose(BASE, trials, PUBLISHED)[0].edit == "a"


def test_less_consistent_edits_are_passed_over():
    trials = [trial("a", 0.8, consistency=0.3), trial("b", 0.7, consistency=0.4), trial("c", 0.6)]
    assert choose(BASE, trials)[0].edit == "b"
    assert choose(BASE, trials, PUBLISHED)[0].edit == "a"
    assert choose(BASE.model_copy(update={"consistency": None}), trials)[0].edit == "a"
    assert choose(BASE, [trial("a", 0.8, consistency=0.3)])[0] == BASE


def test_perplexity_may_rise_by_so_much_and_is_measured_only_where_it_decides():
    rises = {"": 10.0, "a": 10.5, "b": 10.21, "c": 10.2, "d": 9.0}
    asked: list[str] = []

    def perplexity(one: Trial) -> float:
        asked.append(one.edit)
        return rises[one.edit]

    trials = [trial(name, 0.9 - 0.1 * i) for i, name in enumerate("abcd")]
    best, measured = choose(BASE, trials, max_rise=0.02, perplexity=perplexity)
    assert best.edit == "c" and best.perplexity == 10.2
    assert asked == ["", "a", "b", "c"]
    assert [(one.edit, one.perplexity) for one in measured] == [("a", 10.5), ("b", 10.21), ("c", 10.2)]
    assert choose(BASE, trials, max_rise=None, perplexity=perplexity)[0].edit == "a"
    assert choose(BASE, trials[:1], max_rise=0.02, perplexity=perplexity)[0].edit == ""
    asked.clear()
    assert choose(BASE, [trial("a", 0.5)], max_rise=0.02, perplexity=perplexity)[0].edit == ""
    assert asked == []


@pytest.mark.parametrize("seed", range(8))
def test_against_looking_at_every_trial(seed):
    trials = drawn(30, seed)
    good = [one for one in trials if one.accuracy > BASE.accuracy and one.consistency >= BASE.consistency]
    best, _ = choose(BASE, trials)
    if not good:
        assert best == BASE
        return
    top = max(one.accuracy for one in good)
    assert best.accuracy == top
    assert best.log_loss == min(one.log_loss for one in good if one.accuracy == top)


@pytest.mark.parametrize("seed", range(8))
def test_pareto_set_against_its_definition(seed):
    trials = drawn(40, seed)

    def better(one: Trial, other: Trial) -> bool:
        pairs = [(one.accuracy, other.accuracy), (-one.log_loss, -other.log_loss)]
        pairs.append((one.consistency, other.consistency))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    def key(one: Trial) -> tuple[float, float, float]:
        return one.accuracy, one.log_loss, one.consistency

    expected = {key(one) for one in trials if not any(better(other, one) for other in trials)}
    found = pareto(trials)
    assert {key(one) for one in found} == expected and len(found) == len(expected)
    assert [one.accuracy for one in found] == sorted((one.accuracy for one in found), reverse=True)


@pytest.mark.parametrize(
    ("candidates", "rounds", "finalists", "left"),
    [(16, 3, 2, [8, 4, 2]), (16, 1, 2, [2]), (5, 4, 2, [3, 2, 2, 2]), (2, 3, 4, [2, 2, 2]), (9, 0, 2, [])],
)
def test_survivors(candidates, rounds, finalists, left):
    assert survivors(candidates, rounds, finalists) == left


def test_halving_looks_at_more_and_more_for_fewer_and_fewer():
    asked: list[tuple[int, int]] = []

    def score(some, parts):
        asked.append((len(some), parts))
        return [(abs(one - 11.2) / parts,) for one in some]

    assert halve(range(16), 3, 2, score) == [11, 12]
    assert asked == [(16, 1), (8, 2), (4, 3)]
    assert halve(range(3), 0, 2, score) == [0, 1, 2]
    assert halve([1, 2], 3, 2, score) == [1, 2] and len(asked) == 3


def test_halving_keeps_the_order_of_equals():
    assert halve(list("abcdefgh"), 2, 2, lambda some, _: [(0.0,)] * len(some)) == ["a", "b"]


@pytest.mark.parametrize("fast", [8, 20, 40, 100, 1000, None])
def test_parts_end_at_the_examples(fast):
    sizes = Budget(fast=fast).part_sizes()
    assert sizes == sorted(set(sizes))
    assert sizes == [] if fast is None else sizes[-1] == fast and sizes[0] >= 8


def test_rows_of_a_group_stay_in_one_part():
    rows = [Row("", prompt=f"p{i}", group=f"g{i // 3}" if i < 60 else "") for i in range(100)]
    groups = by_groups(rows, range(5, 100), 3)
    assert sorted(place for group in groups for place in group) == list(range(5, 100))
    assert by_groups(rows, range(5, 100), 3) == groups != by_groups(rows, range(5, 100), 4)
    parts = parts_of(groups, [10, 20, 40])
    assert len(parts) == 4 and sorted(chain(*parts)) == list(range(5, 100))
    homes = {rows[place].group: number for number, part in enumerate(parts) for place in part}
    assert all(homes[rows[p].group] == n for n, part in enumerate(parts) for p in part if rows[p].group)
    assert parts_of([[0], [1]], [5]) == [[0, 1]]


def test_tallies_add_up():
    one, other = Tally(3, 2.0, 1.5, 1, 0), Tally(1, 1.0, 0.5, 1, 1)
    both = one + other
    assert (both.accuracy, both.mean_log_loss, both.consistency) == (0.75, 0.5, 0.5)
    assert Tally(2, 1.0, 1.0).consistency is None


def steps(scores: dict[tuple[str, ...], tuple[float, float, float | None]], names: str, allowed=None):
    candidates = [trial(name, 0.9) for name in names]
    asked: list[tuple[str, ...]] = []

    def score(some):
        asked.append(tuple(one.edit for one in some))
        return scores[asked[-1]]

    def within(some):
        return allowed is None or tuple(one.edit for one in some) in allowed

    return compose((0.5, 2.0, 0.4), candidates, score, within), asked


def test_what_is_worse_is_rejected_and_leaves_no_trace():
    scores = {
        ("a",): (0.6, 2.0, 0.4),
        ("a", "b"): (0.55, 1.0, 0.9),
        ("a", "c"): (0.6, 2.0, 0.4),
        ("a", "d"): (0.6, 1.9, 0.4),
        ("a", "d", "e"): (0.9, 1.0, 0.3),
        ("a", "d", "f"): (0.7, 3.0, 0.5),
    }
    found, asked = steps(scores, "abcdef")
    assert asked == list(scores)
    assert [one.accepted for one in found] == [True, False, False, True, False, True]
    assert [one.number for one in found] == [1, 0, 0, 2, 0, 3]
    kept = [0.5, *(one.accuracy for one in found if one.accepted)]
    assert kept == sorted(kept)


def test_a_step_must_keep_within_other_limits():
    scores = {("a",): (0.6, 2.0, 0.4), ("b",): (0.55, 2.0, 0.4)}
    found, _ = steps(scores, "ab", allowed={("b",)})
    assert [one.accepted for one in found] == [False, True]


@pytest.mark.parametrize("seed", range(5))
def test_accepted_scores_never_fall(seed):
    draw = random.Random(seed)
    best = (0.5, 2.0, 0.4)
    candidates = [trial(f"e{i}", 0.6) for i in range(30)]
    told = [(draw.random(), draw.random(), draw.random()) for _ in candidates]
    answers = iter(told)
    for stage, score in zip(compose(best, candidates, lambda _: next(answers)), told, strict=True):
        good = (-score[0], score[1]) < (-best[0], best[1]) and score[2] >= best[2]
        assert stage.accepted == good
        best = score if good else best


def test_order_takes_the_best_of_each_matrix_and_the_last_layer_first():
    trials = [
        trial("low", 0.7, layer=1, matrix="m1"),
        trial("lower", 0.8, layer=1, matrix="m1"),
        trial("late", 0.6, layer=5, matrix="m5"),
        trial("bad", 0.4, layer=6, matrix="m6"),
        trial("same", 0.5, 2.0, layer=7, matrix="m7"),
        trial("surer", 0.5, 1.9, layer=3, matrix="m3"),
    ]
    assert [one.edit for one in order(trials, BASE, 10)] == ["late", "surer", "lower"]
    assert [one.edit for one in order(trials, BASE, 2)] == ["late", "lower"]


def test_space_begins_with_late_feed_forward_matrices():
    every = inventory(family_configs.model("llama")).matrices
    found = space(every, every, RHOS, (1, 2))
    keys = [(one.matrix.group != "mlp", -one.matrix.layer) for one in found]
    assert keys == sorted(keys)
    assert len(found) == len(every) * len(RHOS) * 2 == len({one.key for one in found})
    first = found[0]
    assert (first.matrix.role, first.matrix.layer, first.edit) == ("gate", 2, "gate:2:0.9")
    halves = {one.blocks: one.rank for one in found if one.edit == "up:0:0.5" or one.edit == "up:0:0.4"}
    assert halves == {1: 9, 2: 8}  # of 40 x 24, and of halves of 20 x 24
    assert set(product({"gate", "up", "down"}, range(3))) <= {(o.matrix.role, o.matrix.layer) for o in found}
