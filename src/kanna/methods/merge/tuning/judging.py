"""The chosen merge on rows that chose nothing: as good as each expert, and better than the base?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kanna.methods.merge.tuning.expert_tasks import ExpertTask
from kanna.methods.merge.tuning.results import JudgedGuard, JudgedTask, Judgement
from kanna.tasks.records import TaskScore
from kanna.tasks.verdict.tolerance import PASS, Tolerance, decide, parse_tolerance

Scores = Mapping[str, TaskScore]


def judgement(
    tasks: Sequence[ExpertTask],
    base: Scores,
    experts: Scores,
    merged: Scores,
    max_drop: str | None,
    guards: Sequence[JudgedGuard] = (),
) -> Judgement:
    """Every task of a merge beside its expert and beside the base.

    Args:
        max_drop: What may be lost beside each expert; None only measures.
        guards: Other files, on which nothing must suffer.
    """
    allowed = parse_tolerance(max_drop or "0")
    judged = [_task(one.name, base[one.name], experts[one.name], merged[one.name], allowed) for one in tasks]
    shares = [one.normalised for one in judged if one.normalised is not None]
    held = max_drop is None or all(one.beside_expert.status == PASS for one in judged)
    return Judgement(
        tasks=tuple(judged),
        normalised=math.fsum(shares) / len(shares) if len(shares) == len(judged) else None,
        tolerance=max_drop,
        passed=held and all(one.beside_base.status == PASS for one in guards),
        guards=tuple(guards),
    )


def _task(name: str, base: TaskScore, expert: TaskScore, merged: TaskScore, allowed: Tolerance) -> JudgedTask:
    gain = expert.value - base.value
    gained = gain > 0 if expert.higher_is_better else gain < 0
    return JudgedTask(
        expert=name,
        metric=merged.metric,
        rows=merged.rows,
        base=base.value,
        of_expert=expert.value,
        merged=merged.value,
        normalised=(merged.value - base.value) / gain if gained else None,
        beside_expert=decide(expert, merged, tolerance=allowed),
        beside_base=decide(base, merged, tolerance=parse_tolerance("0")),
    )
