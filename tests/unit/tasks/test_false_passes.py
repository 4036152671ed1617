"""Tasks whose true drop is just the tolerance must pass no oftener than the stated error allows."""

from functools import cache

import numpy as np
import pytest
from scores import binary_of, score_of, text_of

from kanna.tasks.verdict import statistics
from kanna.tasks.verdict.tolerance import Decision, decide, decide_jointly, parse_tolerance

TASKS = 2000
# Three standard errors above 5 % in 2,000 tasks.
MOST = 0.0615


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The level of a bootstrap does not depend on its draws, only what it costs."""
    monkeypatch.setattr(statistics, "draws_for", lambda _: 199)


@cache
def decided(counts: tuple[int, int, int, int], drop: str) -> Decision:
    """Rows without groups: the counts are all that matters, so each is decided once."""
    base, new = binary_of(*counts)
    return decide(score_of(base), score_of(new), tolerance=parse_tolerance(drop))


def cells(base: float, drop: float, churn: float) -> np.ndarray:
    """Shares of both right, lost, gained, neither."""
    return np.array([base - drop - churn, drop + churn, churn, 1 - base - churn])


def drawn(generator: np.random.Generator, rows: int, drop: float, base: float, churn: float):
    """(TASKS,) counts of independent tasks."""
    return [tuple(map(int, one)) for one in generator.multinomial(rows, cells(base, drop, churn), TASKS)]


def true_drop(drop: str, base: float) -> float:
    return -parse_tolerance(drop).allowed(base, higher_is_better=True)


@pytest.mark.parametrize(
    ("rows", "base", "drop", "churn"),
    [
        (25, 0.7, "10pt", 0.02),
        (50, 0.95, "4%", 0.0),
        (100, 0.9, "5pt", 0.0),
        (300, 0.6, "3pt", 0.05),
        (1000, 0.99, "1pt", 0.002),
        (60, 0.8, "10%", 0.05),
        (300, 0.9, "5%", 0.01),
        (600, 0.8, "2%", 0.03),
        (400, 0.3, "10%", 0.1),
    ],
)
def test_a_drop_of_just_the_tolerance_rarely_passes(rows, base, drop, churn):
    tasks = drawn(np.random.default_rng(rows), rows, true_drop(drop, base), base, churn)
    statuses = [decided(one, drop).status for one in tasks]
    assert statuses.count("pass") / TASKS <= MOST
    assert statuses.count("fail") / TASKS <= MOST


@pytest.mark.parametrize(("rows", "base", "drop", "churn"), [(300, 0.6, "5pt", 0.03), (300, 0.8, "5%", 0.02)])
def test_no_drop_passes_often(rows, base, drop, churn):
    tasks = drawn(np.random.default_rng(1), rows, 0.0, base, churn)
    assert sum(decided(one, drop).status == "pass" for one in tasks) / TASKS > 0.5


@pytest.mark.parametrize("drop", ["4pt", "5%"])
@pytest.mark.parametrize("sizes", ["alike", "uneven"])
def test_rows_of_a_group_share_their_fate(drop, sizes):
    """Each group has its own chances, drawn from a Dirichlet distribution whose mean is at the limit."""
    generator = np.random.default_rng(7)
    lengths = np.full(60, 4) if sizes == "alike" else np.tile([1, 2, 5, 8], 15)
    groups = np.repeat(np.arange(60), lengths)
    mean = cells(0.8, true_drop(drop, 0.8), 0.03)
    passes = 0
    for _ in range(TASKS):
        chances = generator.dirichlet(mean, 60).cumsum(-1)[groups]  # rows agree at 1/2
        cell = (generator.random((len(groups), 1)) > chances).sum(-1).clip(0, 3)
        base, new = np.isin(cell, (0, 1)).astype(float), np.isin(cell, (0, 2)).astype(float)
        one, two = score_of(base, groups=groups), score_of(new, groups=groups)
        passes += decide(one, two, tolerance=parse_tolerance(drop)).status == "pass"
    assert passes / TASKS <= MOST


def joint(tasks, drops):
    """Shares of passes and fails of several tasks together."""
    statuses = [
        decide_jointly({str(i): decided(one, drops[i]) for i, one in enumerate(some)}).status
        for some in zip(*tasks, strict=True)
    ]
    return statuses.count("pass") / TASKS, statuses.count("fail") / TASKS


def test_one_task_at_its_limit_and_the_others_well_inside():
    generator = np.random.default_rng(3)
    limit = drawn(generator, 150, 0.04, 0.8, 0.02)
    inside = [drawn(generator, 250, 0.0, 0.8, 0.005) for _ in range(2)]
    passes, _ = joint([limit, *inside], ["4pt", "4pt", "5%"])
    assert 0.02 < passes <= MOST  # the others hardly ever stand in the way


def test_all_tasks_at_their_limits():
    generator = np.random.default_rng(4)
    drops = ["4pt", "5%", "4pt", "5%"]
    tasks = [drawn(generator, 300, true_drop(drop, 0.8), 0.8, 0.02) for drop in drops]
    passes, fails = joint(tasks, drops)
    assert passes <= 0.005
    assert fails <= MOST


def noise(generator: np.random.Generator, kind: str, rows: int) -> np.ndarray:
    """(rows,) of mean 0."""
    if kind == "normal":
        return generator.normal(size=rows)
    skewed = generator.exponential(1.0, rows) - 1
    return skewed if kind == "long above" else -skewed


@pytest.mark.parametrize(
    ("drop", "higher", "kind"),
    [
        ("0.1", True, "long below"),
        ("5%", True, "normal"),
        ("5%", True, "long above"),
        ("5%", False, "long above"),
    ],
)
def test_values_that_are_no_rights_and_wrongs(drop, higher, kind):
    """Rows enough for the tail of an exponential distribution to be seen."""
    generator = np.random.default_rng([5, len(kind), len(drop), higher])
    rows, passes = 120, 0
    for _ in range(TASKS):
        base = generator.gamma(2.0, 1.0, rows)
        worse = 0.1 if drop == "0.1" else 0.05 * 2.0
        new = base - (worse if higher else -worse) + 0.3 * noise(generator, kind, rows)
        one, two = score_of(base, "own", higher=higher), score_of(new, "own", higher=higher)
        passes += decide(one, two, tolerance=parse_tolerance(drop)).status == "pass"
    assert passes / TASKS <= MOST


@pytest.mark.parametrize("rows", [20, 60])
@pytest.mark.parametrize("drop", ["5pt", "5%"])
def test_graded_answers_of_which_few_change(rows, drop):
    """F1 that mostly stays as it was and now and then falls to nothing."""
    generator = np.random.default_rng(6)
    mean = 0.8 + 0.2 * 0.25
    share = 0.05 if drop == "5%" else 0.05 / mean
    passes = 0
    for _ in range(TASKS):
        base = np.where(generator.random(rows) < 0.8, 1.0, 0.5 * generator.random(rows))
        new = np.where(generator.random(rows) < share, 0.0, base)
        status = decide(score_of(base, "f1"), score_of(new, "f1"), tolerance=parse_tolerance(drop)).status
        passes += status == "pass"
    assert passes / TASKS <= MOST


@pytest.mark.parametrize("drop", ["2%", "0.4"])
@pytest.mark.parametrize("windows", [12, 50])
def test_perplexity(drop, windows):
    generator = np.random.default_rng(8)
    tokens = np.full(windows, 128.0)
    tokens[-1] = 40.0
    mean = 3.0
    shift = np.log1p(0.02) if drop == "2%" else np.log1p(0.4 / np.exp(mean))
    passes = 0
    for _ in range(TASKS):
        base = tokens * (mean + 0.01 * generator.normal(size=windows))
        new = base + tokens * (shift + 0.02 * noise(generator, "normal", windows))
        passes += (
            decide(text_of(base, tokens), text_of(new, tokens), tolerance=parse_tolerance(drop)).status
            == "pass"
        )
    assert passes / TASKS <= MOST
