"""Spearman's correlation, its jackknife and the verdict on a change of it, against scipy and simulation."""

import numpy as np
import pytest
from scipy import stats

from kanna.tasks.metrics import rank_correlation
from kanna.tasks.metrics.rank_correlation import jackknifed, midranks, pearson, spearman
from kanna.tasks.records import Record, TaskScore
from kanna.tasks.verdict.correlation import Correlations
from kanna.tasks.verdict.tolerance import decide, parse_tolerance


def drawn(rows: int, ties: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    first = generator.integers(0, 5, rows).astype(float) if ties else generator.normal(size=rows)
    return first, first + generator.normal(size=rows)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rows", [3, 20, 57])
def test_correlations_and_what_rows_add(rows, ties, monkeypatch):
    first, second = drawn(rows, ties, rows)
    second = np.round(second) if ties else second
    assert midranks(first) == pytest.approx(stats.rankdata(first))
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)
    without = []
    for i in range(rows):
        left = stats.spearmanr(np.delete(first, i), np.delete(second, i)).statistic
        without.append(0.0 if np.isnan(left) else left)
    expected = spearman(first, second) + (rows - 1) * (np.mean(without) - np.array(without))
    monkeypatch.setattr(rank_correlation, "_AT_A_TIME", 7 * rows)  # in several parts
    assert jackknifed(first, second) == pytest.approx(expected)
    assert jackknifed(first, second).mean() == pytest.approx(spearman(first, second))


def test_a_constant_has_no_correlation():
    assert spearman(np.ones(5), np.arange(5.0)) == pearson(np.arange(5.0), np.ones(5)) == 0.0
    assert (jackknifed(np.ones(5), np.arange(5.0)) == 0).all()


def score_of(values: np.ndarray, groups: np.ndarray | None = None) -> TaskScore:
    names = [""] * len(values) if groups is None else [f"g{one}" for one in groups]
    records = [
        Record(i, "", "", "", None, {"spearman": float(v)}, group=names[i]) for i, v in enumerate(values)
    ]
    return TaskScore.of("t", "similarity", "spearman", True, {"spearman": float(values.mean())}, {}, records)


def models(rows: int, base: float, new: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Jackknife values of two models of these Spearman correlations, whose errors are alike."""
    generator = np.random.default_rng(seed)
    given, error, other = generator.normal(size=(3, rows))
    found = []
    for correlation, noise in ((base, error), (new, 0.9 * error + np.sqrt(1 - 0.81) * other)):
        linear = 2 * np.sin(np.pi * correlation / 6)
        found.append(jackknifed(linear * given + np.sqrt(1 - linear**2) * noise, given))
    return found[0], found[1]


@pytest.mark.parametrize("relative", [False, True])
def test_bounds_are_where_the_score_turns(relative):
    base, new = models(80, 0.8, 0.75, 1)
    both = Correlations(base, new, np.arange(80))
    for z in (1.645, -1.645, 0.0):
        change = both.bound(z, relative)
        assert both.score(change, relative) == pytest.approx(z, abs=1e-6)
    assert both.bound(0.0, relative) == pytest.approx(new.mean() - base.mean(), abs=1e-6)


def test_groups_count_not_rows():
    base, new = models(60, 0.8, 0.76, 2)
    once = decide(score_of(base), score_of(new), tolerance=parse_tolerance("10pt"))
    groups = np.repeat(np.arange(60), 4)
    again = [score_of(np.repeat(values, 4), groups) for values in (base, new)]
    four = decide(*again, tolerance=parse_tolerance("10pt"))
    assert four.groups == once.groups == 60
    assert four.interval == pytest.approx(once.interval)
    assert "by groups" in four.method and "Fisher" in once.method


@pytest.mark.parametrize(("drop", "text"), [(0.05, "5pt"), (0.04, "5%")])
def test_few_models_at_the_tolerance_pass(drop, text):
    """Their correlation lies just at the limit: one of twenty may pass by chance."""
    passed, tasks = 0, 500
    for seed in range(tasks):
        base, new = models(60, 0.8, 0.8 - drop, seed)
        passed += decide(score_of(base), score_of(new), tolerance=parse_tolerance(text)).status == "pass"
    assert passed <= tasks * 0.05 + 3 * np.sqrt(tasks * 0.05 * 0.95)


def test_a_clear_loss_fails_and_no_loss_passes():
    base, new = models(300, 0.8, 0.6, 3)
    assert decide(score_of(base), score_of(new), tolerance=parse_tolerance("5pt")).status == "fail"
    assert decide(score_of(new), score_of(base), tolerance=parse_tolerance("5pt")).status == "pass"
    unmoved = decide(score_of(base), score_of(base), tolerance=parse_tolerance("5pt"))
    assert unmoved.status == "pass" and "not seen" in unmoved.method
    few = decide(score_of(base[:9]), score_of(new[:9]), tolerance=parse_tolerance("5pt"))
    assert few.status == "undecided" and few.interval == (-2.0, 2.0)
