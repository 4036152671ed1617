"""How much worse a model may be, and whether it is: a test of non-inferiority on paired examples.

A drop is allowed if the data show, at the stated confidence, that it stays within the tolerance; it is too
large if they show as surely that it does not; else nothing is decided, and the rows it would take are given.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from kanna.errors import InputError
from kanna.result import Interval, Result
from kanna.tasks.metrics.shown import change
from kanna.tasks.records import TaskScore
from kanna.tasks.verdict import paired, statistics
from kanna.tasks.verdict.paired import Outcome, Values
from kanna.tasks.verdict.statistics import Pairs

Status = Literal["pass", "fail", "undecided"]
PASS: Final = "pass"
FAIL: Final = "fail"
UNDECIDED: Final = "undecided"
_PATTERN = re.compile(r"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|pt|pts|)\s*")


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
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InputError(
            f"tolerance {text!r} cannot be read",
            "write 1% (of the base's score), 1pt (points), or 0.2 (units)",
        )
    number, unit = float(match[1]), match[2]
    if unit == "%" and number >= 100:
        raise InputError(f"tolerance {text!r} allows everything", "give less than 100%")
    return Tolerance(number if unit == "" else number / 100, unit == "%", text.strip())


def check_below_1(name: str, tolerance: Tolerance | None, metric: str) -> None:
    """Raise InputError for a drop that no share exceeds: a bare 5 would be five units of what has one."""
    if tolerance is not None and not tolerance.relative and tolerance.amount >= 1:
        raise InputError(
            f"{name}: a drop of {tolerance.text} allows everything, since {metric} lies between 0 and 1",
            "write 5% (of the base's score) or 5pt (points)",
        )


class Decision(Result):
    """Whether one task stays within its tolerance.

    Args:
        status: pass, fail or undecided.
        difference: New minus base, in units of the metric.
        interval: Of the difference, two-sided, at twice the error of the one-sided bound. It shows what was
            tested: for a relative tolerance new / base of rights and wrongs, otherwise
            new - (1 - tolerance) * base, put on the base's score as seen.
        bound: The interval's end on the worse side; passing means that it lies within `allowed`, and failing
            that the other end lies beyond.
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

    status: Status
    difference: float
    interval: Interval
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


def decide(
    base: TaskScore,
    new: TaskScore,
    *,
    tolerance: Tolerance,
    confidence: float = 0.95,
    identical: bool = False,
    seed: int = 0,
) -> Decision:
    """Compare two models' records of one task by its headline metric.

    Values that are all 0 or 1 are compared by score tests, perplexity by its logarithm, other values by their
    mean, the latter two with a bootstrap. Where rows have groups, groups count, not rows.

    Args:
        identical: The weights are bit-identical: it passes outright.

    Raises:
        InputError: The records are not of the same rows, or the metric has no value per row.
    """
    if [record.row for record in base.records] != [record.row for record in new.records]:
        raise InputError(
            f"{base.task}: the models were not scored on the same rows ({len(base.records)} and "
            f"{len(new.records)})",
            "evaluate both again",
        )
    values = paired.values_of(base, new)
    if identical:
        return _decision(values, paired.UNCHANGED, PASS, tolerance, confidence)
    score = values.score(values.base)
    allowed = tolerance.allowed(score, values.higher)
    # The change just allowed, of the mean or its logarithm, where more is better: at most 0.
    target = values.sign * (math.log(max(1e-12, 1 + allowed / score)) if values.logarithmic else allowed)
    test = paired.compared(values, target, tolerance.relative, confidence, seed)
    status: Status = PASS if test.low > target else FAIL if test.high < target else UNDECIDED
    return _decision(values, test, status, tolerance, confidence)


def _decision(
    values: Values, test: Outcome, status: Status, tolerance: Tolerance, confidence: float
) -> Decision:
    base, ends = values.score(values.base), [values.change(end) for end in (test.low, test.high)]
    flips = _flips(values) if values.binary else None
    lost, gained = (None, None) if flips is None else (int(flips.lost), int(flips.gained))
    return Decision(
        status=status,
        difference=values.score(values.new) - base,
        interval=(min(ends), max(ends)),
        bound=ends[0],
        allowed=tolerance.allowed(base, values.higher),
        confidence=confidence,
        p_pass=test.p_pass,
        p_fail=test.p_fail,
        p_flips=None if lost is None or gained is None else statistics.mcnemar_exact(lost, gained),
        lost=lost,
        gained=gained,
        rows=len(values.base),
        groups=values.clusters,
        more_rows=test.more if status == UNDECIDED else None,
        method=test.method,
        tolerance=tolerance.text,
    )


def _flips(values: Values) -> Pairs:
    """Counts of rights and wrongs; where less is better, a 1 is a wrong."""
    base, new = (side if values.higher else 1 - side for side in (values.base, values.new))
    return statistics.pairs_of(base, new)


@dataclass(frozen=True)
class JointDecision:
    """Of several tasks at once."""

    status: Status
    explanation: str


def decide_jointly(
    decisions: Mapping[str, Decision],
    guards: Collection[str] = (),
    texts: Collection[str] = (),
    metrics: Mapping[str, str] = MappingProxyType({}),
) -> JointDecision:
    """All tasks must pass.

    Each is tested at the full level: a false pass needs a false pass of the very task that is too bad, so the
    joint error stays below one task's (intersection-union test, Berger 1982). That some task fails is said
    with Bonferroni's correction, since one of many fails by chance more often than one alone.

    Args:
        guards: Names of those that only guard against side effects.
        texts: Names of those whose rows are windows of text.
        metrics: Name -> headline metric, in whose unit changes are said.
    """
    alpha = 1 - min(decision.confidence for decision in decisions.values())
    failed = [
        f"{name} changed by {change(metrics.get(name, ''), decision.difference)}, surely more than the "
        f"{change(metrics.get(name, ''), decision.allowed)} allowed ({decision.tolerance})"
        for name, decision in decisions.items()
        if decision.p_fail * len(decisions) <= alpha + statistics.SLACK
    ]
    if failed:
        return JointDecision(FAIL, "; ".join(failed))
    open_ = [name for name, decision in decisions.items() if decision.status != PASS]
    if open_:
        return JointDecision(
            UNDECIDED, "; ".join(f"{name}: {_needed(decisions[name], name in texts)}" for name in open_)
        )
    sure = f"{100 * (1 - alpha):.4g} %"
    if all(decision.method == paired.IDENTICAL for decision in decisions.values()):
        return JointDecision(PASS, "the weights are bit-identical")
    return JointDecision(PASS, f"{_tested(decisions, guards)} within the tolerance, at {sure} confidence")


def _tested(decisions: Mapping[str, Decision], guards: Collection[str]) -> str:
    """The tasks, and how many of them are guards."""
    guarding = sum(name in guards for name in decisions)
    tasks = len(decisions) - guarding
    if not guarding:
        return "the task" if tasks == 1 else f"all {tasks} tasks"
    counts = [f"{count} {word if count == 1 else word + 's'}" for word, count in
              (("task", tasks), ("guard", guarding)) if count]  # fmt: skip
    return " and ".join(counts)


def _needed(decision: Decision, text: bool) -> str:
    if decision.status == FAIL:
        return "beyond its tolerance, but not surely so among several tasks; give more rows"
    if decision.method == paired.TOO_FEW:
        least = paired.FEWEST_GROUPS
        return f"{decision.groups} examples, groups or windows say too little; give {least} at least"
    if decision.more_rows is None:
        return "not enough data, and the change seen is just the one allowed: more rows alone may not decide"
    what = "windows of text" if text else "examples"
    return (
        f"not enough data: about {decision.more_rows:,} more {what} would decide, "
        f"as a {_expected(decision)} if the change stays as it is"
    )


def _expected(decision: Decision) -> Status:
    """What more rows of the same kind would show: whether the change seen is smaller than the one allowed."""
    higher = decision.bound == decision.interval[0]  # the worse end
    within = decision.difference > decision.allowed if higher else decision.difference < decision.allowed
    return PASS if within else FAIL


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
    z, beta = statistics.normal_quantile(confidence), statistics.normal_quantile(power)
    one_way, of_base = min(flips / 2, base, 1 - base), base if tolerance.relative else 1.0

    def enough(rows: int) -> bool:
        """The score's own spread is that of the true difference over the one the test assumes."""
        moved = one_way * rows
        pairs = Pairs(base * rows - moved, moved, moved, (1 - base) * rows - moved)
        if tolerance.relative:
            score = statistics.ratio_score(pairs, 1 - tolerance.amount)
        else:
            score = statistics.difference_score(pairs, -tolerance.amount)
        if math.isinf(score):  # nothing moves at this tolerance, so that nothing is left to chance
            return score > 0
        assumed = tolerance.amount * of_base * rows / max(1e-12, score)
        return score >= z + beta * math.sqrt(max(1e-12, 2 * moved)) / assumed

    high = 1
    while not enough(high):
        high *= 2
        if high > 2**40:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
