"""Whether a pass says anything: a base that is no better than the constant answer has nothing to lose."""

from collections.abc import Sequence

from kanna.tasks.metrics.text_metrics import REGEX
from kanna.tasks.metrics.user_metric import METRICS
from kanna.tasks.verdict.comparison import TaskComparison
from kanna.tasks.verdict.paired import IDENTICAL


def nothing_to_lose(tasks: Sequence[TaskComparison]) -> str:
    """Which tasks cannot show a loss, in one sentence; empty where all can.

    Guards are not asked: what they guard may well be one answer for every row. Nor are identical weights.
    """
    named = [
        f"{task.task}: the base itself ({task.metric} {task.base_value:.4f}) is not above the constant "
        f"answer ({task.floors['constant']:.4f}), so there is nothing to lose"
        for task in tasks
        if _asked(task) and task.base_value <= task.floors["constant"]
    ]
    return "; ".join(named)


def _asked(task: TaskComparison) -> bool:
    """Whether it was judged by a share of right answers, which the constant answer has, too."""
    ours = task.metric in METRICS.get(task.kind, {}) or task.metric.startswith(REGEX)
    judged = task.decision is not None and task.decision.method != IDENTICAL
    rights = task.decision is not None and task.decision.lost is not None and task.higher_is_better
    return judged and rights and ours and not task.guard and "constant" in task.floors
