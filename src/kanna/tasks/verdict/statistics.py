"""Tests and bounds for two models on the same examples.

Right and wrong answers are compared by score tests, whose variance is the one under the hypothesis, so they
hold where few answers or none differ: Tango (1998) for a difference of paired proportions, Nam and
Blackwelder (2002) with the closed form of Tang, Tang and Chan (2003) for their ratio. Other values are
compared by a bootstrap of the studentised mean (Efron and Tibshirani 1993, ch. 12), drawn by groups of rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Probabilities that differ by rounding alone count as equal.
SLACK = 1e-9
_DRAWS_AT_A_TIME = 2**22
# The studentised deviation of a draw without any spread.
_BEYOND = 1e9
_HIGHEST_RATIO = 1e6
_FEWEST_FLIPPED_GROUPS = 10


@dataclass(frozen=True)
class Pairs:
    """Counts of paired right and wrong answers; fractions where they were divided by a design effect.

    Args:
        both: Both right.
        lost: Base right, new wrong.
        gained: Base wrong, new right.
        neither: Both wrong.
    """

    both: float
    lost: float
    gained: float
    neither: float

    @property
    def rows(self) -> float:
        return self.both + self.lost + self.gained + self.neither

    @property
    def base(self) -> float:
        """Share of right answers of the base."""
        return (self.both + self.lost) / self.rows

    @property
    def difference(self) -> float:
        """New minus base, as a share."""
        return (self.gained - self.lost) / self.rows

    def divided(self, by: float) -> "Pairs":
        return Pairs(self.both / by, self.lost / by, self.gained / by, self.neither / by)


def pairs_of(base: Floats, new: Floats) -> Pairs:
    """Count (rows,) values of 0 and 1."""
    b, n = base > 0.5, new > 0.5
    counts = ((b & n).sum(), (b & ~n).sum(), (~b & n).sum(), (~b & ~n).sum())
    return Pairs(*map(float, counts))


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p-value that flips go one way as often as the other (exact binomial, McNemar 1947)."""
    flips, fewer = lost + gained, min(lost, gained)
    logs = [_log_binomial(flips, k) - flips * math.log(2) for k in range(fewer + 1)]
    top = max(logs)
    return min(1.0, 2 * math.exp(top) * sum(math.exp(log - top) for log in logs))


def difference_score(pairs: Pairs, difference: float) -> float:
    """z of Tango's test that p_new - p_base is `difference`, from -1 to 1; positive where more is seen.

    Degree 1/2 in the counts: k times as many rows of the same kind give sqrt(k) times the score.
    """
    n, d = pairs.rows, difference
    b = -(pairs.gained + pairs.lost) + (2 * n - pairs.gained + pairs.lost) * d
    c = -pairs.lost * d * (1 - d)
    least = max(0.0, -d)  # of the share that only the base has right
    share = max(least, (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n))
    variance = n * (2 * share + d * (1 - d))
    return over(pairs.gained - pairs.lost - n * d, variance)


def ratio_score(pairs: Pairs, ratio: float) -> float:
    """z of the test that p_new is `ratio` (0..1 or above) times p_base; positive where more is seen."""
    n = pairs.rows
    some = pairs.both + pairs.gained + pairs.lost
    a = n * (1 + ratio)
    b = (pairs.both + pairs.lost) * ratio**2 - (pairs.both + pairs.gained + 2 * pairs.lost)
    c = pairs.lost * (1 - ratio) * some / n
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * ((1 + ratio) * share + some * (ratio - 1) / n)
    return over(pairs.both + pairs.gained - ratio * (pairs.both + pairs.lost), variance)


def difference_bound(pairs: Pairs, z: float) -> float:
    """The difference at which `difference_score` is z: a lower bound for z > 0, an upper one for z < 0."""
    return solve(lambda d: difference_score(pairs, d), z, -1.0, 1.0)


def ratio_bound(pairs: Pairs, z: float) -> float:
    """The ratio at which `ratio_score` is z, from 0 to a million."""
    return solve(lambda r: ratio_score(pairs, r), z, 1e-9, _HIGHEST_RATIO)


def design_effect(differences: Floats, groups: NDArray[np.int64]) -> float:
    """How many rows count as one, since rows of one group flip together; at least 1.

    The variance of the mean by groups over that by rows. With flips in fewer than ten groups it cannot be
    estimated, and is taken as if all rows of a group always flipped together.

    Args:
        differences: (rows,) new minus base.
        groups: (rows,) group numbers from 0.
    """
    sizes = np.bincount(groups)
    together = float((sizes**2).sum() / sizes.sum())
    sums = np.bincount(groups, weights=differences)
    if together == 1.0:
        return 1.0
    if np.count_nonzero(np.bincount(groups, weights=np.abs(differences))) < _FEWEST_FLIPPED_GROUPS:
        return together
    residuals = sums - sizes * differences.mean()
    by_group = float((residuals**2).sum()) * len(sizes) / max(1, len(sizes) - 1)
    by_row = float(((differences - differences.mean()) ** 2).sum())
    return max(1.0, by_group / by_row) if by_row > 0 else together


@dataclass(frozen=True)
class Bootstrap:
    """A weighted mean and how it varies when groups are drawn again.

    Args:
        estimate: The mean.
        error: Its standard error.
        draws: Sorted (draws,) studentised deviations.
    """

    estimate: float
    error: float
    draws: Floats

    def bound(self, confidence: float) -> float:
        """Lower bound at a one-sided confidence; above a value just where `p_above` of it is small enough."""
        return self.estimate - self.far(confidence)[1] * self.error

    def upper(self, confidence: float) -> float:
        """Upper bound at a one-sided confidence."""
        return self.estimate - self.far(confidence)[0] * self.error

    def far(self, confidence: float) -> tuple[float, float]:
        """The lowest and highest studentised deviations that are not yet surprising."""
        place = max(1, math.floor((1 - confidence) * (len(self.draws) + 1) + SLACK))
        return float(self.draws[place - 1]), float(self.draws[-place])

    def p_above(self, value: float) -> float:
        """One-sided p-value that the mean is no larger than `value`."""
        return self._tail(lambda draws, score: draws >= score, value)

    def p_below(self, value: float) -> float:
        """One-sided p-value that the mean is no smaller than `value`."""
        return self._tail(lambda draws, score: draws <= score, value)

    def _tail(self, beyond: Callable[[Floats, float], NDArray[np.bool_]], value: float) -> float:
        if self.error == 0:
            return float(beyond(np.zeros(1), self.estimate - value)[0])
        hits = int(beyond(self.draws, (self.estimate - value) / self.error).sum())
        return (hits + 1) / (len(self.draws) + 1)


def bootstrap(
    values: Floats, weights: Floats, groups: NDArray[np.int64], seed: int = 0, draws: int = 4999
) -> Bootstrap:
    """Of sum(values) / sum(weights) over rows, drawing whole groups.

    Args:
        values: (rows,)
        weights: (rows,) positive; ones for a plain mean, tokens for a mean per token.
        groups: (rows,) group numbers from 0.
    """
    tops: Floats = np.bincount(groups, weights=values).astype(np.float64)
    bottoms: Floats = np.bincount(groups, weights=weights).astype(np.float64)
    estimate, error = _mean(tops[None], bottoms[None])
    generator = np.random.default_rng(seed)
    deviations = []
    for start in range(0, draws, chunk := max(1, _DRAWS_AT_A_TIME // len(tops))):
        drawn = generator.integers(0, len(tops), (min(chunk, draws - start), len(tops)))
        mean, spread = _mean(tops[drawn], bottoms[drawn])
        away = mean - estimate[0]
        deviations.append(
            np.where(spread > 0, away / np.where(spread > 0, spread, 1), np.sign(away) * _BEYOND)
        )
    return Bootstrap(float(estimate[0]), float(error[0]), np.sort(np.concatenate(deviations)))


def draws_for(confidence: float) -> int:
    """Draws of a bootstrap that put at least twenty beyond a one-sided bound."""
    return max(4999, math.ceil(20 / (1 - confidence)))


def unseen(units: float, confidence: float) -> float:
    """Upper bound of the share of units that change, where none of so many did ("rule of three")."""
    return -math.expm1(math.log(1 - confidence) / units)


def normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(confidence)


def normal_tail(z: float) -> float:
    """P(Z >= z)."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def _mean(tops: Floats, bottoms: Floats) -> tuple[Floats, Floats]:
    """Along the last axis: ratio of sums, and its linearised standard error."""
    groups, total = tops.shape[-1], bottoms.sum(-1)
    mean = tops.sum(-1) / total
    residuals = tops - mean[..., None] * bottoms
    return mean, np.sqrt((residuals**2).sum(-1) * groups / max(1, groups - 1)) / total


def over(deviation: float, variance: float) -> float:
    if variance <= 1e-12 * max(1.0, abs(deviation)):
        return 0.0 if deviation == 0 else math.copysign(math.inf, deviation)
    return deviation / math.sqrt(variance)


def solve(score: Callable[[float], float], z: float, low: float, high: float) -> float:
    """Where a falling function passes z, by halving."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > z else (low, middle)
    return (low + high) / 2


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
