"""Score tests against likelihoods maximised by search, other statistics against scipy and statsmodels."""

import numpy as np
import pytest
import statsmodels.api
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from kanna.tasks.records import Record
from kanna.tasks.verdict.repeats import repeated, unit_numbers
from kanna.tasks.verdict.statistics import (
    Pairs,
    bootstrap,
    design_effect,
    difference_bound,
    difference_score,
    draws_for,
    mcnemar_exact,
    normal_quantile,
    normal_tail,
    pairs_of,
    ratio_bound,
    ratio_score,
    unseen,
)

COUNTS = [
    (43, 9, 4, 44),
    (80, 1, 0, 19),
    (80, 0, 3, 17),
    (95, 5, 0, 0),
    (10, 2, 30, 58),
    (3, 2, 1, 0),
    (900, 31, 24, 45),
    (0, 7, 6, 20),
]
DIFFERENCES = (-0.6, -0.2, -0.05, -0.001, 0.0, 0.03, 0.4)
RATIOS = (0.3, 0.8, 0.95, 1.0, 1.04, 1.9)


def likelihood(counts, cells):
    """Log-likelihood of (both, lost, gained, neither), without what does not depend on the cells."""
    return sum(n * np.log(max(p, 1e-300)) for n, p in zip(counts, cells, strict=True) if n)


def maximised(counts, cells_at, low, high):
    """The best of one free cell, found on a grid and refined."""
    grid = np.linspace(low, high, 4001)[1:-1]
    best = grid[np.argmax([likelihood(counts, cells_at(x)) for x in grid])]
    step = grid[1] - grid[0]
    found = optimize.minimize_scalar(
        lambda x: -likelihood(counts, cells_at(x)),
        bounds=(max(low, best - step), min(high, best + step)),
        method="bounded",
        options={"xatol": 1e-13},
    )
    return found.x


def difference_reference(counts, d):
    """z with the variance at the likeliest cells under p_new - p_base = d; both : neither as seen."""
    both, lost, gained, neither = counts
    n = sum(counts)

    def cells(only_base):
        rest = 1 - 2 * only_base - d
        share = both / (both + neither) if both + neither else 0.5
        return rest * share, only_base, only_base + d, rest * (1 - share)

    only_base = maximised(counts, cells, max(0.0, -d), (1 - d) / 2)
    variance = (2 * only_base + d - d * d) / n
    return ((gained - lost) / n - d) / np.sqrt(variance)


def ratio_reference(counts, r):
    """z with the variance of p_new - r p_base at the likeliest cells under p_new = r p_base, by search."""
    both, lost, gained, _ = counts
    n = sum(counts)

    def of(free):
        one, share = 1 / (1 + np.exp(-free[0])), 1 / (1 + np.exp(-free[1]))
        base = one * min(1.0, 1 / r)  # new = r base <= 1
        least, most = max(0.0, base + r * base - 1), min(base, r * base)
        shared = least + (most - least) * share
        return shared, base - shared, r * base - shared, 1 - base - r * base + shared

    starts = [(a, b) for a in (-2.0, 0.5, 3.0) for b in (-3.0, 0.0, 3.0)]
    found = [
        optimize.minimize(
            lambda x: -likelihood(counts, of(x)),
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 4000},
        )
        for start in starts
    ]
    shared, only_base, only_new, _ = of(min(found, key=lambda one: one.fun).x)
    base, new = shared + only_base, shared + only_new
    variance = (new * (1 - new) + r * r * base * (1 - base) - 2 * r * (shared - base * new)) / n
    return ((both + gained) / n - r * (both + lost) / n) / np.sqrt(variance)


@pytest.mark.parametrize("counts", COUNTS)
def test_difference_score_is_that_of_the_likelihood(counts):
    for d in DIFFERENCES:
        if d == 0 and counts[1] == counts[2] == 0:
            continue
        assert difference_score(Pairs(*counts), d) == pytest.approx(
            difference_reference(counts, d), rel=2e-4, abs=2e-4
        )


@pytest.mark.parametrize("counts", [one for one in COUNTS if one[0] + one[1]])
def test_ratio_score_is_that_of_the_likelihood(counts):
    for r in RATIOS:
        assert ratio_score(Pairs(*counts), r) == pytest.approx(ratio_reference(counts, r), rel=1e-3, abs=1e-3)


def test_no_difference_is_the_statistic_of_mcnemar():
    for counts in COUNTS:
        _, lost, gained, _ = counts
        z = (gained - lost) / np.sqrt(gained + lost)
        assert difference_score(Pairs(*counts), 0.0) == pytest.approx(z)
        assert ratio_score(Pairs(*counts), 1.0) == pytest.approx(z)


@pytest.mark.parametrize("z", [-2.0, -1.2, 1.0, 1.645])
def test_bounds_invert_the_scores(z):
    generator = np.random.default_rng(11)
    for counts in [*COUNTS, *generator.integers(0, 60, (20, 4)).tolist()]:
        pairs = Pairs(*counts)
        d = difference_bound(pairs, z)
        if -1 + 1e-6 < d < 1 - 1e-6:
            assert difference_score(pairs, d) == pytest.approx(z, abs=1e-4)
        if pairs.base > 0:
            r = ratio_bound(pairs, z)
            if 1e-6 < r < 1e5:
                assert ratio_score(pairs, r) == pytest.approx(z, abs=1e-4)


def test_scores_fall_and_bounds_hold_what_was_seen():
    generator = np.random.default_rng(12)
    for counts in generator.integers(0, 40, (50, 4)):
        pairs = Pairs(*map(float, counts))
        scores = [difference_score(pairs, d) for d in np.linspace(-0.999, 0.999, 301)]
        assert np.all(np.diff(scores) <= 1e-9)
        assert difference_bound(pairs, 1.6) <= pairs.difference + 1e-9
        assert difference_bound(pairs, -1.6) >= pairs.difference - 1e-9
        if pairs.base == 0:
            continue
        scores = [ratio_score(pairs, r) for r in np.geomspace(1e-3, 50, 301)]
        assert np.all(np.diff(scores) <= 1e-9)
        seen = (pairs.both + pairs.gained) / (pairs.both + pairs.lost)
        assert ratio_bound(pairs, 1.6) <= seen + 1e-9 <= ratio_bound(pairs, -1.6) + 2e-9


def test_scores_grow_as_the_root_of_the_rows():
    pairs = Pairs(70, 6, 3, 21)
    four = Pairs(280, 24, 12, 84)
    assert difference_score(four, -0.07) == pytest.approx(2 * difference_score(pairs, -0.07))
    assert ratio_score(four, 0.9) == pytest.approx(2 * ratio_score(pairs, 0.9))
    assert difference_score(four.divided(4), -0.07) == pytest.approx(difference_score(pairs, -0.07))


def test_the_difference_bound_nears_walds_with_many_rows():
    pairs, z = Pairs(60_000, 5_000, 4_000, 31_000), 1.645
    share = np.array([5_000, 4_000]) / 100_000
    error = np.sqrt((share.sum() - (share[1] - share[0]) ** 2) / 100_000)
    assert difference_bound(pairs, z) == pytest.approx(-0.01 - z * error, abs=2e-5)


def test_zero_flips_follow_the_rule_of_three():
    """Without a flip in n rows, z^2 / (n + z^2) is the limit of what may be lost."""
    z = normal_quantile(0.95)
    for n in (1, 20, 500):
        assert difference_bound(Pairs(0.8 * n, 0, 0, 0.2 * n), z) == pytest.approx(-z * z / (n + z * z))
        assert difference_bound(Pairs(n, 0, 0, 0), -z) == pytest.approx(z * z / (n + z * z))


@pytest.mark.parametrize(
    ("counts", "seen"),
    [((30, 0, 0, 0), 0.0), ((0, 0, 0, 30), 0.0), ((0, 30, 0, 0), -1.0), ((0, 0, 30, 0), 1.0)],
)
def test_all_of_one_kind(counts, seen):
    pairs = Pairs(*map(float, counts))
    assert pairs.difference == seen
    low, high = difference_bound(pairs, 1.645), difference_bound(pairs, -1.645)
    assert -1 <= low <= seen <= high <= 1 and high - low > 0.05
    assert np.isfinite([ratio_bound(pairs, 1.645), ratio_bound(pairs, -1.645)]).all()


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 5), (3, 14), (40, 22), (700, 820)])
def test_mcnemar_is_the_exact_binomial(lost, gained):
    expected = mcnemar(np.array([[9, lost], [gained, 9]]), exact=True).pvalue
    assert mcnemar_exact(lost, gained) == pytest.approx(expected if lost + gained else 1.0)
    if lost + gained:
        assert mcnemar_exact(lost, gained) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue)


def test_normal_distribution():
    for one in (0.6, 0.95, 0.999):
        assert normal_quantile(one) == pytest.approx(stats.norm.ppf(one))
    for z in (-3.0, 0.0, 1.5, 9.0):
        assert normal_tail(z) == pytest.approx(stats.norm.sf(z))


def test_pairs_are_counted():
    base, new = np.array([1.0, 1, 0, 0, 1]), np.array([1.0, 0, 1, 0, 1])
    assert pairs_of(base, new) == Pairs(2, 1, 1, 1)


def test_design_effect_is_the_cluster_robust_variance():
    """Over the plain variance, with statsmodels' correction for the number of clusters."""
    generator = np.random.default_rng(2)
    for sizes in (np.full(60, 4), generator.integers(1, 9, 80)):
        groups = np.repeat(np.arange(len(sizes)), sizes)
        values = generator.normal(size=len(sizes))[groups] + generator.normal(size=len(groups))
        model = statsmodels.api.OLS(values, np.ones(len(values)))
        clustered = model.fit(cov_type="cluster", cov_kwds={"groups": groups})
        white = model.fit(cov_type="HC0")
        expected = clustered.bse[0] ** 2 / white.bse[0] ** 2
        assert design_effect(values, groups) == pytest.approx(expected, rel=1e-6)


def test_design_effect_at_its_ends():
    generator = np.random.default_rng(3)
    alone = np.arange(50)
    assert design_effect(generator.normal(size=50), alone) == 1.0
    groups = np.repeat(np.arange(30), 5)
    copies = generator.choice([-1.0, 0.0, 1.0], 30)[groups]
    assert design_effect(copies, groups) == pytest.approx(5 * 30 / 29, rel=1e-6)
    assert design_effect(np.zeros(150), groups) == 5.0  # nothing flipped: as if all would together
    few = np.zeros(150)
    few[:4] = 1.0
    assert design_effect(few, groups) == 5.0
    assert design_effect(np.ones(7), np.zeros(7, dtype=np.int64)) == 7.0
    assert design_effect(np.ones(1), np.zeros(1, dtype=np.int64)) == 1.0


def test_bootstrap_of_many_rows_is_the_t_interval():
    values = np.random.default_rng(4).normal(0.3, 2.0, 2000)
    found = bootstrap(values, np.ones(2000), np.arange(2000))
    assert found.estimate == pytest.approx(values.mean())
    assert found.error == pytest.approx(stats.sem(values))
    for confidence in (0.9, 0.95):
        low = stats.t.ppf(1 - confidence, 1999, values.mean(), stats.sem(values))
        high = stats.t.ppf(confidence, 1999, values.mean(), stats.sem(values))
        assert found.bound(confidence) == pytest.approx(low, abs=0.08 * found.error)
        assert found.upper(confidence) == pytest.approx(high, abs=0.08 * found.error)
    assert found.p_above(0.2) == pytest.approx(
        stats.ttest_1samp(values, 0.2, alternative="greater").pvalue, abs=0.01
    )
    assert found.p_below(0.4) == pytest.approx(
        stats.ttest_1samp(values, 0.4, alternative="less").pvalue, abs=0.01
    )


def test_bootstrap_of_skewed_rows_is_a_naive_loop():
    generator = np.random.default_rng(5)
    values, weights = generator.exponential(1.0, 24), generator.uniform(1, 3, 24)
    groups = np.repeat(np.arange(12), 2)
    found = bootstrap(values, weights, groups, draws=6000)
    deviations = []
    for _ in range(6000):
        drawn = np.concatenate([np.flatnonzero(groups == g) for g in generator.integers(0, 12, 12)])
        mean, error = ratio_and_error(values[drawn], weights[drawn], np.repeat(np.arange(12), 2))
        deviations.append((mean - values.sum() / weights.sum()) / error)
    mean, error = ratio_and_error(values, weights, groups)
    assert (found.estimate, found.error) == (pytest.approx(mean), pytest.approx(error))
    naive = mean - np.quantile(deviations, 0.95) * error
    assert found.bound(0.95) == pytest.approx(naive, abs=0.12 * error)


def ratio_and_error(values, weights, groups):
    """Sum over sum, and its error by the delta method over groups."""
    mean = values.sum() / weights.sum()
    residuals = [(values - mean * weights)[groups == g].sum() for g in np.unique(groups)]
    count = len(residuals)
    return mean, np.sqrt(np.sum(np.square(residuals)) * count / (count - 1)) / weights.sum()


def test_bootstrap_agrees_with_scipys():
    values = np.random.default_rng(6).gamma(3.0, 1.0, 400)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="BCa", n_resamples=4999, rng=np.random.default_rng(0)
    ).confidence_interval
    ours = bootstrap(values, np.ones(400), np.arange(400))
    assert ours.bound(0.95) == pytest.approx(theirs.low, abs=0.15 * ours.error)
    assert ours.upper(0.95) == pytest.approx(theirs.high, abs=0.15 * ours.error)


def test_bootstrap_bounds_and_p_values_never_disagree():
    generator = np.random.default_rng(7)
    for confidence in (0.8, 0.9, 0.95, 0.99):
        for _ in range(20):
            values = generator.exponential(1.0, 15)
            found = bootstrap(values, np.ones(15), np.arange(15), draws=499)
            for value in np.sort(found.estimate - found.draws[:: len(found.draws) // 40] * found.error):
                alpha = 1 - confidence + 1e-9
                assert (found.bound(confidence) > value + 1e-12) <= (found.p_above(value) <= alpha)
                assert (found.p_above(value) <= alpha) <= (found.bound(confidence) > value - 1e-12)
                assert (found.upper(confidence) < value - 1e-12) <= (found.p_below(value) <= alpha)
                assert (found.p_below(value) <= alpha) <= (found.upper(confidence) < value + 1e-12)


def test_bootstrap_is_seeded_and_groups_are_drawn_whole():
    values = np.random.default_rng(8).normal(size=60)
    first, again = (bootstrap(values, np.ones(60), np.arange(60), seed=1, draws=99) for _ in range(2))
    assert np.array_equal(first.draws, again.draws)
    other = bootstrap(values, np.ones(60), np.arange(60), seed=2, draws=99)
    assert not np.array_equal(first.draws, other.draws)
    copies = bootstrap(np.repeat(values, 4), np.ones(240), np.repeat(np.arange(60), 4), seed=1, draws=99)
    assert copies.error == pytest.approx(first.error)
    np.testing.assert_allclose(copies.draws, first.draws)


def test_draws_leave_enough_beyond_a_bound():
    for confidence in (0.6, 0.95, 0.999, 0.9999):
        assert (1 - confidence) * draws_for(confidence) >= 20 - 1e-6


def test_unseen_is_the_exact_binomial_bound():
    for units in (1, 20, 300):
        found = unseen(units, 0.95)
        assert stats.binom.pmf(0, units, found) == pytest.approx(0.05)


def test_units_are_rows_of_one_group_and_rows_that_repeat_one_another():
    def asked(prompt: str, expected: str, group: str = "") -> Record:
        return Record(0, prompt, expected, "", True, {"acc": 1.0}, group=group)

    groups = [Record(0, "", "", "", True, {}, group=group) for group in ("a", "", "b", "a", "")]
    assert unit_numbers(groups).tolist() == [0, 1, 2, 0, 3] and repeated(groups) == 0
    composed, decomposed = "café", "cafe\u0301"
    rows = [
        asked("x", composed),
        asked("x", "y"),
        asked("x", decomposed),
        asked("x ", "y", "g"),
        asked("z", ""),
    ]
    assert unit_numbers([*rows, asked("w", "", "g")]).tolist() == [0, 1, 0, 1, 2, 1]
    assert repeated(rows) == 2
    windows = [Record(0, "the", "", "", None, {"nll": nll, "tokens": 9.0}) for nll in (5.0, 5.00001, 7.0)]
    assert unit_numbers(windows).tolist() == [0, 0, 1]
