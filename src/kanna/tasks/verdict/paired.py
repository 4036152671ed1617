"""Whether a change of a task's score stays above a target: the tests behind a decision, on paired rows."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kanna.errors import InputError
from kanna.tasks.records import TaskScore
from kanna.tasks.verdict import statistics
from kanna.tasks.verdict.correlation import Correlations
from kanna.tasks.verdict.repeats import unit_numbers
from kanna.tasks.verdict.statistics import Floats

# Rows are scaled a little past the point where the test turns, which rounding could miss.
_PAST = 1.001
# Of a bootstrap. With fewer, skewed values pass too often: 9 % of tasks at the limit instead of 5 % with 8.
FEWEST_GROUPS = 10
IDENTICAL = "identical weights"
# Metrics whose values per row have a correlation as their mean.
CORRELATIONS = ("spearman",)
_WIDEST_CORRELATION = 2.0
TOO_FEW = "too few examples, or groups of them, to say anything"
# Beyond these, bounds from a few changed rows are mere size.
_LARGEST_QUANTILE, _LARGEST_LOGARITHM = 10.0, 50.0


@dataclass(frozen=True)
class Values:
    """Paired (rows,) values and weights; for text nats and tokens of windows.

    Args:
        base: In units of the metric, or of its logarithm for perplexities, times the weights.
        new: The same of the other model.
        weights: Ones, or tokens.
        groups: (rows,) group numbers from 0; rows that repeat one another are a group too.
        higher: Whether more is better.
        text: Whether rows are windows of tokens.
        logarithmic: Whether the metric is the exponential of the mean.
        correlation: Whether the mean is a correlation.
    """

    base: Floats
    new: Floats
    weights: Floats
    groups: Any
    higher: bool = True
    text: bool = False
    logarithmic: bool = False
    correlation: bool = False

    @property
    def binary(self) -> bool:
        both = np.concatenate([self.base, self.new])
        return not self.text and bool(np.isin(both, (0.0, 1.0)).all())

    @property
    def moved(self) -> bool:
        return bool((self.new != self.base).any())

    @property
    def shares(self) -> bool:
        """Whether all values lie in 0..1."""
        both = np.concatenate([self.base, self.new])
        return not self.text and bool(both.min() >= 0 and both.max() <= 1)

    @property
    def sign(self) -> float:
        return 1.0 if self.higher else -1.0

    @property
    def units(self) -> float:
        """What changes independently: tokens of text that is not repeated, groups of rows."""
        return float(self.weights.sum()) * self.clusters / len(self.groups) if self.text else self.clusters

    @property
    def clusters(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def widest(self) -> float:
        """How much one unit may change, as far as the values tell."""
        if self.correlation:
            return _WIDEST_CORRELATION
        per_unit = np.abs(np.concatenate([self.base / self.weights, self.new / self.weights]))
        return 1.0 if self.shares else float(per_unit.max()) or 1.0

    def mean(self, values: Floats) -> float:
        return float(values.sum() / self.weights.sum())

    def score(self, values: Floats) -> float:
        return math.exp(self.mean(values)) if self.logarithmic else self.mean(values)

    def change(self, oriented: float) -> float:
        """A change on the tests' scale as one of the score; no share changes by more than 1."""
        signed = self.sign * oriented
        if self.logarithmic:
            return self.score(self.base) * math.expm1(min(signed, _LARGEST_LOGARITHM))
        return max(-1.0, min(1.0, signed)) if self.shares else signed


def values_of(base: TaskScore, new: TaskScore) -> Values:
    """The headline metric of two models' records of the same rows.

    Raises:
        InputError: The metric has no value per row.
    """
    metric, both = base.metric, [*base.records, *new.records]
    own = all(metric in record.values for record in both)
    text = not own and all("nll" in record.values for record in both)
    if not text and not own:
        reasons = [note for note in (*base.notes, *new.notes) if metric in note]
        why = reasons[0] if reasons else f"{metric} has no value per row"
        raise InputError(
            f"{base.task}: {why}, so nothing can be said of chance",
            "choose another metric, or give no tolerance",
        )
    key = "nll" if text else metric
    weights = np.array([record.values["tokens"] if text else 1.0 for record in base.records])
    first, second = (np.array([record.values[key] for record in some.records]) for some in (base, new))
    mean = float(first.sum() / weights.sum())
    logarithmic = text and (metric.endswith("perplexity") or _exponential(mean, base.value))
    # One nat per token of the records in units of the metric, such as bits per byte.
    unit = (math.log(base.value) if logarithmic else base.value) / mean if text and mean else 1.0
    groups = unit_numbers(base.records)
    higher = base.higher_is_better
    correlation = metric in CORRELATIONS
    return Values(first * unit, second * unit, weights, groups, higher, text, logarithmic, correlation)


def _exponential(mean: float, value: float) -> bool:
    """Whether a score of any name is a perplexity."""
    return value > 0 and math.isclose(math.log(value), mean, rel_tol=1e-6)


@dataclass(frozen=True)
class Outcome:
    """Bounds of a change of the mean, or of its logarithm, on a scale where more is better.

    Args:
        low: One-sided lower bound; above the target it passes.
        high: One-sided upper bound; below the target it fails.
        p_pass: One-sided p-value against "the change is no more than the target".
        p_fail: One-sided p-value against "the change is no less than the target".
        more: Rows that would decide where nothing is decided; None where none would.
        method: What was computed.
    """

    low: float
    high: float
    p_pass: float
    p_fail: float
    more: int | None
    method: str


UNCHANGED = Outcome(0.0, 0.0, 0.0, 1.0, None, IDENTICAL)


def compared(values: Values, target: float, relative: bool, confidence: float, seed: int = 0) -> Outcome:
    """The test that fits the values.

    Args:
        target: The change just allowed, where more is better: at most 0.
        relative: Whether it is a share of the base's score, which then is no fixed number.
    """
    if values.binary and values.higher:
        return _by_score(values, target, relative, confidence)
    if values.clusters < FEWEST_GROUPS:
        return Outcome(-values.widest, values.widest, 1.0, 1.0, None, TOO_FEW)
    if not values.moved:
        return _unmoved(values, target, confidence)
    if values.correlation:
        return _by_correlation(values, target, relative, confidence)
    return _by_bootstrap(values, target, relative, confidence, seed)


def _by_score(values: Values, target: float, relative: bool, confidence: float) -> Outcome:
    counts = statistics.pairs_of(values.base, values.new)
    effect = statistics.design_effect(values.new - values.base, values.groups)
    pairs, z = counts.divided(effect), statistics.normal_quantile(confidence)
    if relative and counts.base > 0:
        score = statistics.ratio_score(pairs, 1 + target / counts.base)
        low, high = ((statistics.ratio_bound(pairs, quantile) - 1) * counts.base for quantile in (z, -z))
        method = "score test of the ratio of paired proportions"
    else:
        score = statistics.difference_score(pairs, max(-1.0, target))
        low, high = (statistics.difference_bound(pairs, quantile) for quantile in (z, -z))
        method = "score test of paired proportions"
    return Outcome(
        low,
        high,
        p_pass=statistics.normal_tail(score),
        p_fail=statistics.normal_tail(-score),
        more=_more(len(values.base), score, z, z),
        method=method if effect == 1 else f"{method}, {effect:.2f} rows of a group counting as one",
    )


def _by_bootstrap(values: Values, target: float, relative: bool, confidence: float, seed: int) -> Outcome:
    """Of new - factor * base, so that a target relative to the base's score is tested with its error."""
    base = values.mean(values.base)
    moved = target if relative and not values.logarithmic and base != 0 else 0.0
    factor = 1 + values.sign * moved / base if moved else 1.0
    contrast = values.sign * (values.new - factor * values.base)
    draws = statistics.draws_for(confidence)
    mean = statistics.bootstrap(contrast, values.weights, values.groups, seed, draws)
    away, z = mean.estimate - (target - moved), statistics.normal_quantile(confidence)
    lowest, highest = mean.far(confidence)
    score = 0.0 if mean.error == 0 else away / mean.error
    return Outcome(
        low=mean.bound(confidence) + moved,
        high=mean.upper(confidence) + moved,
        p_pass=mean.p_above(target - moved),
        p_fail=mean.p_below(target - moved),
        more=_more(len(values.base), score, z, highest if score > 0 else -lowest),
        method="paired bootstrap of the studentised mean"
        + (", by groups" if values.clusters < len(values.base) else "")
        + (", of log perplexity" if values.logarithmic else ""),
    )


def _by_correlation(values: Values, target: float, relative: bool, confidence: float) -> Outcome:
    both = Correlations(values.base, values.new, values.groups)
    score, z = both.score(target, relative), statistics.normal_quantile(confidence)
    return Outcome(
        low=both.bound(z, relative),
        high=both.bound(-z, relative),
        p_pass=statistics.normal_tail(score),
        p_fail=statistics.normal_tail(-score),
        more=_more(len(values.base), score, z, z),
        method="jackknife of the difference of paired correlations, on Fisher's scale"
        + (", by groups" if values.clusters < len(values.base) else ""),
    )


def _unmoved(values: Values, target: float, confidence: float) -> Outcome:
    """Not one value changed: a bootstrap would be sure of that, however few there are."""
    reach = values.widest * statistics.unseen(values.units, confidence)
    share = min(1.0, -target / values.widest)
    more = None
    if 0 < share < 1:
        wanted = math.log(1 - confidence) / math.log1p(-share)
        more = max(1, math.ceil(len(values.base) * (_PAST * wanted / values.units - 1)))
    method = "no value changed: bound of what was not seen"
    return Outcome(-reach, reach, (1 - share) ** values.units, 1.0, more, method)


def _more(rows: int, score: float, z: float, quantile: float) -> int | None:
    """Rows beyond these at which a score that grows as their root reaches its quantile.

    The quantile itself (of a skewed bootstrap) nears the normal one as the root of the rows.
    """
    size = abs(score)
    if size < 1e-3 or not math.isfinite(score):
        return None
    excess = min(quantile, max(_LARGEST_QUANTILE, 2 * size)) - z
    root = (z + math.sqrt(max(0.0, z * z + 4 * size * excess))) / (2 * size)
    return max(1, math.ceil(rows * (_PAST * root**2 - 1)))
