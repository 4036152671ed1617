"""How much worse a model may be, and whether it is: a test of non-inferiority on paired examples.

A drop is allowed if the data show, at the stated confidence, that it stays within the tolerance; it is too
large if they show as surely that it does not; else nothing is decided, and the rows it would take are given.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kanna.errors import InputError
from kanna.tasks import statistics
from kanna.tasks.records import Record
from kanna.tasks.statistics import Floats, Pairs

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|pt|pts|)\s*")
# Rows are scaled a little past the point where the test turns, which rounding could miss.
_PAST = 1.001


@dataclass(frozen=True)
class Tolerance:
    """An allowed drop.

    Args:
        amount: For a relative one the share of the base's score, else in units of the metric (0.01 is 1 pt).
        relative: Whether it is a share of the base's score.
        text: As the user wrote it.
    """

    amount: float
    relative: bool
    text: str

    def allowed(self, base: float, higher_is_better: bool) -> float:
        """The change of a score that is just allowed: negative where higher is better."""
        size = self.amount * abs(base) if self.relative else self.amount
        return -size if higher_is_better else size


def parse_tolerance(text: str) -> Tolerance:
    """`1%` is relative to the base's score, `1pt` absolute points of a percentage, `0.2` absolute units.

    Raises:
        InputError: Anything else, or a relative one of 100 % or more.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise InputError(
            f"tolerance {text!r} cannot be read",
            "write 1% (of the base's score), 1pt (points), or 0.2 (units)",
        )
    number, unit = float(found[1]), found[2]
    if unit == "%" and number >= 100:
        raise InputError(f"tolerance {text!r} allows everything", "give less than 100%")
    return Tolerance(number if unit == "" else number / 100, unit == "%", text.strip())


@dataclass(frozen=True)
class Decision:
    """Whether one task stays within its tolerance.

    Args:
        status: pass, fail or undecided.
        difference: New minus base, in units of the metric.
        interval: Two-sided, at twice the error of the one-sided bound.
        bound: One-sided bound of the difference on the worse side; passing means it lies within `allowed`.
        allowed: The difference just allowed.
        confidence: Of the bound.
        p_pass: One-sided p-value against "the drop exceeds the tolerance".
        p_fail: One-sided p-value against "the drop stays within the tolerance".
        p_flips: Exact McNemar p-value that flips go both ways alike; None for values that are no rights and
            wrongs. It takes rows as independent.
        lost: Right before, wrong now; None as above.
        gained: Wrong before, right now.
        rows: Compared.
        groups: Rows of one group count as drawn together.
        more_rows: About how many more rows of the same kind would decide; None where it is decided or where
            none would.
        method: What was computed.
        tolerance: As the user wrote it.
    """

    status: str
    difference: float
    interval: tuple[float, float]
    bound: float
    allowed: float
    confidence: float
    p_pass: float
    p_fail: float
    p_flips: float | None
    lost: int | None
    gained: int | None
    rows: int
    groups: int
    more_rows: int | None
    method: str
    tolerance: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide(
    base: Sequence[Record],
    new: Sequence[Record],
    *,
    metric: str,
    higher_is_better: bool,
    tolerance: Tolerance,
    confidence: float = 0.95,
    identical: bool = False,
    seed: int = 0,
) -> Decision:
    """Compare two models' records of one task.

    Values that are all 0 or 1 are compared by score tests, perplexity by its logarithm, other values by their
    mean, the latter two with a bootstrap. Where rows have groups, groups count, not rows.

    Args:
        identical: The weights are bit-identical: it passes outright.

    Raises:
        InputError: The records are not of the same rows.
    """
    if [one.row for one in base] != [one.row for one in new]:
        raise InputError(
            f"the models were not scored on the same rows ({len(base)} and {len(new)})", "evaluate both again"
        )
    pairs = _Values.of(base, new, metric)
    if identical:
        found = _unchanged(pairs, tolerance, confidence, higher_is_better)
    elif pairs.binary and higher_is_better:
        found = _by_score(pairs, tolerance, confidence)
    else:
        found = _by_bootstrap(pairs, tolerance, confidence, higher_is_better, seed)
    return _with_flips(found, pairs)


@dataclass(frozen=True)
class _Values:
    """Paired (rows,) values and weights; for perplexity nats and tokens of windows."""

    base: Floats
    new: Floats
    weights: Floats
    groups: Any
    logarithmic: bool

    @staticmethod
    def of(base: Sequence[Record], new: Sequence[Record], metric: str) -> "_Values":
        groups = statistics.group_numbers([one.group for one in base])
        text = "nll" in base[0].values and metric not in base[0].values
        key = "nll" if text else metric
        weights = np.array([one.values["tokens"] if text else 1.0 for one in base])
        first, second = (np.array([one.values[key] for one in some]) for some in (base, new))
        return _Values(first, second, weights, groups, text and metric == "perplexity")

    @property
    def binary(self) -> bool:
        both = np.concatenate([self.base, self.new])
        return bool(np.isin(both, (0.0, 1.0)).all())

    def score(self, values: Floats) -> float:
        mean = float(values.sum() / self.weights.sum())
        return math.exp(mean) if self.logarithmic else mean


def _by_score(values: _Values, tolerance: Tolerance, confidence: float) -> Decision:
    counts = statistics.pairs_of(values.base, values.new)
    effect = statistics.design_effect(values.new - values.base, values.groups)
    pairs, z = counts.divided(effect), statistics.normal_quantile(confidence)
    allowed = tolerance.allowed(counts.base, True)
    if tolerance.relative:
        score = statistics.ratio_score(pairs, 1 - tolerance.amount)
        bound = (statistics.ratio_bound(pairs, z) - 1) * counts.base
        method = "score test of the ratio of paired proportions"
    else:
        score = statistics.difference_score(pairs, max(-1.0, allowed))
        bound = statistics.difference_bound(pairs, z)
        method = "score test of paired proportions"
    between = (statistics.difference_bound(pairs, z), statistics.difference_bound(pairs, -z))
    return Decision(
        status=PASS if score >= z else FAIL if score <= -z else UNDECIDED,
        difference=counts.difference,
        interval=between,
        bound=bound,
        allowed=allowed,
        confidence=confidence,
        p_pass=statistics.normal_tail(score),
        p_fail=statistics.normal_tail(-score),
        p_flips=None,
        lost=None,
        gained=None,
        rows=len(values.base),
        groups=int(values.groups.max()) + 1,
        more_rows=_more(len(values.base), score, z),
        method=method if effect == 1 else f"{method}, {effect:.2f} rows of a group counting as one",
        tolerance=tolerance.text,
    )


def _by_bootstrap(
    values: _Values, tolerance: Tolerance, confidence: float, higher: bool, seed: int
) -> Decision:
    """On a scale where more is better and the tolerance is a shift of the mean."""
    sign = 1.0 if higher else -1.0
    base, new = values.score(values.base), values.score(values.new)
    allowed = tolerance.allowed(base, higher)
    factor = 1 + sign * allowed / base if tolerance.relative and not values.logarithmic and base else 1.0
    shift = 0.0
    if values.logarithmic:
        shift = math.log(max(1e-12, 1 + allowed / base))
    elif factor == 1.0:
        shift = allowed
    factor = 1.0 - sign * tolerance.amount if factor != 1.0 else 1.0
    contrast = statistics.bootstrap(
        sign * (values.new - factor * values.base), values.weights, values.groups, seed
    )
    plain = statistics.bootstrap(sign * (values.new - values.base), values.weights, values.groups, seed)
    target = sign * shift
    p_pass, p_fail = contrast.p_above(target), contrast.p_below(target)
    alpha = 1 - confidence
    low, high = plain.bound(confidence), plain.upper(confidence)
    bound = contrast.bound(confidence) + sign * (factor - 1.0) * base
    ends = [_back(sign * one, base, values.logarithmic) for one in (low, high)]
    away = contrast.estimate - target
    score = 0.0 if contrast.error == 0 else away / contrast.error
    return Decision(
        status=PASS if p_pass <= alpha else FAIL if p_fail <= alpha else UNDECIDED,
        difference=new - base,
        interval=(min(ends), max(ends)),
        bound=_back(sign * bound, base, values.logarithmic),
        allowed=allowed,
        confidence=confidence,
        p_pass=p_pass,
        p_fail=p_fail,
        p_flips=None,
        lost=None,
        gained=None,
        rows=len(values.base),
        groups=int(values.groups.max()) + 1,
        more_rows=_more(len(values.base), score, statistics.normal_quantile(confidence)),
        method="paired bootstrap of the studentised mean"
        + (", by groups" if values.groups.max() + 1 < len(values.base) else "")
        + (", of log perplexity" if values.logarithmic else ""),
        tolerance=tolerance.text,
    )


def _back(change: float, base: float, logarithmic: bool) -> float:
    """A change of the logarithm as a change of perplexity."""
    return base * math.expm1(change) if logarithmic else change


def _more(rows: int, score: float, z: float) -> int | None:
    """Rows beyond these at which a score that grows as their root would reach z."""
    if abs(score) >= z or abs(score) < 1e-3 or not math.isfinite(score):
        return None
    return max(1, math.ceil(rows * (_PAST * (z / score) ** 2 - 1)))


def _unchanged(values: _Values, tolerance: Tolerance, confidence: float, higher: bool) -> Decision:
    base = values.score(values.base)
    return Decision(
        status=PASS,
        difference=0.0,
        interval=(0.0, 0.0),
        bound=0.0,
        allowed=tolerance.allowed(base, higher),
        confidence=confidence,
        p_pass=0.0,
        p_fail=1.0,
        p_flips=None,
        lost=None,
        gained=None,
        rows=len(values.base),
        groups=int(values.groups.max()) + 1,
        more_rows=None,
        method="identical weights",
        tolerance=tolerance.text,
    )


def _with_flips(found: Decision, values: _Values) -> Decision:
    if not values.binary:
        return found
    counts = statistics.pairs_of(values.base, values.new)
    lost, gained = int(counts.lost), int(counts.gained)
    return replace(found, lost=lost, gained=gained, p_flips=statistics.mcnemar_exact(lost, gained))


@dataclass(frozen=True)
class JointDecision:
    """Of several tasks at once."""

    status: str
    explanation: str


def decide_jointly(decisions: Mapping[str, Decision]) -> JointDecision:
    """All tasks must pass.

    Each is tested at the full level: a false pass needs a false pass of the very task that is too bad, so the
    joint error stays below one task's (intersection-union test, Berger 1982). That some task fails is said
    with Bonferroni's correction, since one of many fails by chance more often than one alone.
    """
    alpha = 1 - min(one.confidence for one in decisions.values())
    failed = [name for name, one in decisions.items() if one.p_fail * len(decisions) <= alpha]
    if failed:
        said = "; ".join(f"{name} {_beyond(decisions[name])}" for name in failed)
        return JointDecision(FAIL, said)
    open_ = [name for name, one in decisions.items() if one.status != PASS]
    if open_:
        return JointDecision(UNDECIDED, "; ".join(f"{name}: {_needed(decisions[name])}" for name in open_))
    tested = "the task" if len(decisions) == 1 else f"all {len(decisions)} tasks"
    sure = f"{100 * (1 - alpha):.4g} %"
    if all(one.method == "identical weights" for one in decisions.values()):
        return JointDecision(PASS, "the weights are bit-identical")
    return JointDecision(PASS, f"{tested} within the tolerance, at {sure} confidence")


def _beyond(decision: Decision) -> str:
    return (
        f"changed by {decision.difference:+.4g}, surely more than the {decision.allowed:+.4g} allowed "
        f"({decision.tolerance})"
    )


def _needed(decision: Decision) -> str:
    if decision.status == FAIL:
        return "beyond its tolerance, but not surely so among several tasks; give more rows"
    if decision.more_rows is None:
        return "not enough data, and the change seen is just the one allowed: more rows alone may not decide"
    return f"not enough data: about {decision.more_rows:,} more examples would decide"


def rows_needed(
    tolerance: Tolerance,
    base: float = 0.8,
    flips: float = 0.04,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int | None:
    """Rows at which a model that is no worse passes with probability `power`.

    Args:
        base: Share of right answers.
        flips: Share of rows on which the models differ, as many each way; twice 2 % is usual for mild
            compression.

    Returns:
        None where no number does: a tolerance of 0.
    """
    if tolerance.amount == 0:
        return None
    high, z = 1, statistics.normal_quantile(confidence)
    beta = statistics.normal_quantile(power)
    while _score_at(high, tolerance, base, flips) < _wanted(high, tolerance, base, flips, z, beta):
        high *= 2
        if high > 2**40:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = _score_at(middle, tolerance, base, flips) >= _wanted(middle, tolerance, base, flips, z, beta)
        low, high = (low, middle) if enough else (middle, high)
    return high


def _score_at(rows: int, tolerance: Tolerance, base: float, flips: float) -> float:
    half = min(flips / 2, base, 1 - base) * rows
    pairs = Pairs(base * rows - half, half, half, (1 - base) * rows - half)
    if tolerance.relative:
        return statistics.ratio_score(pairs, 1 - tolerance.amount)
    return statistics.difference_score(pairs, -tolerance.amount)


def _wanted(rows: int, tolerance: Tolerance, base: float, flips: float, z: float, beta: float) -> float:
    """The score's own spread is that of the true difference over the one the test assumes."""
    shift = tolerance.amount * (base if tolerance.relative else 1.0) * rows
    assumed = shift / max(1e-12, _score_at(rows, tolerance, base, flips))
    true = math.sqrt(max(1e-12, min(flips, 2 * base, 2 * (1 - base)) * rows))
    return z + beta * true / assumed
