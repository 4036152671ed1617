"""What tuning takes: evaluations, tokens and, roughly, seconds; known before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.tuning.expert_tasks import ExpertTask

# Multiplications and additions a second of one core, and characters of a token; rough figures.
_A_SECOND = 2e10
_CHARACTERS = 4


@dataclass(frozen=True)
class Work:
    """Args:
    evaluations: How many times a model is scored on the calibration rows of a task.
    merges: Models that are made for it.
    rows: Of one evaluation of every task.
    tokens: About, of all evaluations.
    seconds: About, on one core.
    """

    evaluations: int
    merges: int
    rows: int
    tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "evaluations": self.evaluations,
            "merges": self.merges,
            "rows": self.rows,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
        }


def foreseen(plan: MergePlan, tasks: Sequence[ExpertTask], candidates: int, ends: int) -> Work:
    """Of so many candidates on all tasks.

    Args:
        ends: Further models on each task: the base, and its expert.
    """
    parameters = sum(math.prod(tensor.spec.shape) for tensor in plan.tensors)
    inputs = sum(tensor.spec.numbers * len(tensor.parts) for tensor in plan.tensors)
    tokens = sum(map(_tokens, tasks)) * (candidates + ends)
    merging = candidates * inputs * plan.recipe.rule.nanoseconds * 1e-9
    return Work(
        evaluations=(candidates + ends) * len(tasks),
        merges=candidates,
        rows=sum(len(task.calibration.rows) for task in tasks),
        tokens=tokens,
        seconds=merging + 2 * parameters * tokens / _A_SECOND,
    )


def _tokens(task: ExpertTask) -> int:
    texts = (
        len(row.asked) * max(1, len(row.choices)) + sum(map(len, row.choices or row.accepted))
        for row in task.calibration.rows
    )
    return sum(texts) // _CHARACTERS
