"""Whether a pass says anything: a base that knows no more than one constant answer has nothing to lose."""

import math
from collections import Counter
from collections.abc import Sequence

from kanna.tasks.data.units import plain
from kanna.tasks.metrics.shown import shown
from kanna.tasks.metrics.text_metrics import REGEX
from kanna.tasks.metrics.user_metric import METRICS
from kanna.tasks.records import TaskScore
from kanna.tasks.verdict.comparison import TaskComparison
from kanna.tasks.verdict.paired import IDENTICAL
from kanna.tasks.verdict.repeats import unit_numbers
from kanna.tasks.verdict.statistics import normal_quantile

_CONSTANT = "constant"


def nothing_to_lose(tasks: Sequence[TaskComparison], confidence: float) -> str:
    """Which tasks cannot show a loss, in one sentence; empty where all can.

    Guards are not asked: what they guard may well be one answer for every row. Nor are identical weights.
    """
    reasons = [(task.task, emptiness(task.base, confidence, "the base")) for task in tasks if _asked(task)]
    return "; ".join(f"{name}: {reason}" for name, reason in reasons if reason)


def emptiness(score: TaskScore, confidence: float, who: str = "the model") -> str:
    """Why a score says nothing about a model, in words; empty where it says something.

    That every prompt was cut, or that the share of right answers is not surely above what one constant answer
    gets: its one-sided lower bound (Wilson 1927), over groups of rows where there are any.
    """
    if score.cut and score.cut >= score.rows:
        return f"every prompt was cut to fit {who}, so nothing was asked as it is written"
    constant = score.floors.get(_CONSTANT)
    if constant is None or not _of_rights(score):
        return ""
    units = int(unit_numbers(score.records).max()) + 1 if score.records else score.rows
    if _lowest_share(score.value, units, normal_quantile(confidence)) > constant:
        return ""
    seen = f"{shown(score.metric, score.value)} on {score.rows:,} rows against {shown(_CONSTANT, constant)}"
    surely = "no better than" if score.value <= constant else "not surely better than"
    return f"{who} does {surely} always answering {_constant_answer(score)} ({score.metric} {seen})"


def _of_rights(score: TaskScore) -> bool:
    """Whether its metric is a share of right answers, which the constant answer has, too."""
    ours = score.metric in METRICS.get(score.kind, {}) or score.metric.startswith(REGEX)
    judged = all(record.right is not None for record in score.records)
    return ours and judged and score.higher_is_better


def _asked(task: TaskComparison) -> bool:
    return task.decision is not None and task.decision.method != IDENTICAL and not task.guard


def _lowest_share(share: float, count: int, z: float) -> float:
    """One-sided lower bound of a share seen among `count` independent answers."""
    spread = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (share + z * z / (2 * count) - z * spread) / (1 + z * z / count)


def _constant_answer(score: TaskScore) -> str:
    """The answer that its floor is of, as far as the records tell."""
    expected = Counter(plain(record.expected.strip()) for record in score.records)
    labels = Counter(record.label for record in score.records if record.label is not None)
    for answers, word in ((expected, "{!r}"), (labels, "choice {}")):
        for answer, count in answers.most_common(1):
            if math.isclose(count / len(score.records), score.floors[_CONSTANT]):
                return word.format(answer)
    return "the same"
