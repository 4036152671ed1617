"""Is the new model still right: the same tasks, the same rows, an interval, and a verdict."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.recipe.blame import Blame
from kanna.recipe.blame import blame as find_blame
from kanna.recipe.criteria import Criteria
from kanna.recipe.evaluations import evaluate, load_for
from kanna.tasks.divergence import Divergence, divergence
from kanna.tasks.evaluate import EvalOptions, Prepared, prepare
from kanna.tasks.records import Evaluation, Record, TaskScore
from kanna.tasks.task import Task
from kanna.tasks.tokenizer import context_length, load_tokenizer, predicts_next_token
from kanna.tasks.tolerance import Decision, JointDecision, decide, decide_jointly

Progress = Callable[[str, int, int], None]
PASS, FAIL, UNDECIDED, NOT_JUDGED = "pass", "fail", "undecided", "not judged"
_DIVERGENCE_TOKENS = 4096
# Flipped examples that --blame asks again for each matrix.
_MOST_BLAMED = 64
_LOST, _GAINED = "lost", "gained"


@dataclass(frozen=True)
class Flip:
    """An example on which one model is right and the other wrong, or that got worse."""

    row: int
    prompt: str
    expected: str
    base: str
    new: str
    direction: str
    change: float

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class TaskComparison:
    """One task.

    Args:
        base: Score of the base.
        new: Score of the new model, on the same rows.
        guard: Whether the task only guards against side effects.
        decision: None where no tolerance was given.
        flips: The worst first.
        lost: Rows that were right and are wrong.
        gained: Rows that were wrong and are right.
    """

    base: TaskScore
    new: TaskScore
    guard: bool
    decision: Decision | None
    flips: tuple[Flip, ...]
    lost: int
    gained: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.base.task,
            "kind": self.base.kind,
            "metric": self.base.metric,
            "higher_is_better": self.base.higher_is_better,
            "guard": self.guard,
            "rows": len(self.base.records),
            "base": self.base.value,
            "new": self.new.value,
            "base_metrics": dict(self.base.metrics),
            "new_metrics": dict(self.new.metrics),
            "floors": dict(self.base.floors),
            "decision": None if self.decision is None else self.decision.to_dict(),
            "lost": self.lost,
            "gained": self.gained,
            "flips": [flip.to_dict() for flip in self.flips],
            "notes": list(dict.fromkeys((*self.base.notes, *self.new.notes))),
        }


@dataclass(frozen=True)
class Comparison:
    """Two models on the same tasks.

    Args:
        base: Name and bytes of the first.
        new: Of the second.
        confidence: Of the one-sided bounds.
        status: pass, fail, undecided, or "not judged" where no tolerance was given.
        explanation: One sentence for people.
        tasks: In the order asked for.
        divergence: None where it was not measured; `notes` says why.
        blame: None unless asked for.
    """

    base: Evaluation
    new: Evaluation
    confidence: float
    status: str
    explanation: str
    tasks: tuple[TaskComparison, ...]
    divergence: Divergence | None = None
    blame: tuple[Blame, ...] | None = None
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.status in (PASS, NOT_JUDGED)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "compare",
            "base": {"model": self.base.model, "bytes": self.base.bytes},
            "model": {"model": self.new.model, "bytes": self.new.bytes},
            "confidence": self.confidence,
            "status": self.status,
            "explanation": self.explanation,
            "tasks": [one.to_dict() for one in self.tasks],
            "distribution": None if self.divergence is None else self.divergence.to_dict(),
            "blame": None if self.blame is None else [one.to_dict() for one in self.blame],
            "notes": list(self.notes),
            "settings": self.settings,
        }

    def summary(self) -> dict[str, Any]:
        """What a lineage keeps: no rows of the task."""
        said = self.to_dict()
        for one in said["tasks"]:
            one.pop("flips")
        return {key: value for key, value in said.items() if key not in ("schema_version", "kind")}


def compare(
    base: str | Path,
    model: str | Path,
    criteria: Criteria,
    options: EvalOptions | None = None,
    *,
    examples: int = 10,
    distribution: bool = True,
    blame: bool = False,
    fresh: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Comparison:
    """Evaluate both models on the tasks of `criteria`, one in memory at a time, and decide.

    Bit-identical weights pass outright. `distribution` and `blame` hold both models in memory.

    Args:
        examples: Flips to show per task.
        distribution: Measure KL divergence and top-1 agreement of next-token distributions.
        blame: Find which changed matrix, put back alone, repairs most flips.

    Raises:
        InputError: Whatever is wrong with a model, a task or the request.
    """
    chosen = _common_context(base, model, options or EvalOptions())
    plans = [prepare(one, criteria.files, chosen) for one in (base, model)]
    identical = lineage.base_hash(Checkpoint.open(base)) == lineage.base_hash(Checkpoint.open(model))
    first = evaluate(base, criteria.files, chosen, fresh=fresh, cache=cache, progress=progress)
    second = (
        replace(first, model=plans[1].name, bytes=plans[1].bytes)
        if identical
        else evaluate(model, criteria.files, chosen, fresh=fresh, cache=cache, progress=progress)
    )
    tasks = tuple(
        _task(one, two, criteria, identical, examples)
        for one, two in zip(first.scores, second.scores, strict=True)
    )
    joint = _joint(tasks)
    status, explanation = (NOT_JUDGED, _UNJUDGED) if joint is None else (joint.status, joint.explanation)
    found = Comparison(first, second, criteria.confidence, status, explanation, tasks)
    if identical:
        return replace(found, notes=("the weights are bit-identical",))
    return _with_both(found, base, model, plans, chosen, distribution, blame, progress)


_UNJUDGED = "no tolerance was given, so nothing is decided"


def _common_context(base: str | Path, model: str | Path, options: EvalOptions) -> EvalOptions:
    """Both read as much: the context of the one that reads less."""
    if options.context is not None:
        return options
    configs = [Checkpoint.open(one) for one in (base, model)]
    lengths = [context_length(one.config, load_tokenizer(one.directory), None) for one in configs]
    return replace(options, context=min(lengths))


def _task(
    base: TaskScore, new: TaskScore, criteria: Criteria, identical: bool, examples: int
) -> TaskComparison:
    rule = criteria.rule(base.task)
    decision = None
    if rule.tolerance is not None:
        decision = decide(
            base,
            new,
            tolerance=rule.tolerance,
            confidence=criteria.confidence,
            identical=identical,
        )
    flips = _flips(base, new)
    lost = sum(flip.direction == _LOST for flip in flips)
    gained = sum(flip.direction == _GAINED for flip in flips)
    return TaskComparison(base, new, rule.guard, decision, tuple(flips[:examples]), lost, gained)


def _flips(base: TaskScore, new: TaskScore) -> list[Flip]:
    """Lost before gained, those whose log-likelihood fell most first."""
    pairs = zip(base.records, new.records, strict=True)
    flipped = [_flip(one, two) for one, two in pairs if one.right is not None and one.right != two.right]
    return sorted(flipped, key=lambda flip: (flip.direction != _LOST, -flip.change))


def _flip(base: Record, new: Record) -> Flip:
    change = new.values.get("log_loss", 0.0) - base.values.get("log_loss", 0.0)
    direction = _LOST if base.right else _GAINED
    said = (base.predicted or _described(base), new.predicted or _described(new))
    return Flip(base.row, base.prompt, base.expected, *said, direction, change)


def _described(record: Record) -> str:
    """What stands for an answer that was not written out."""
    loss = record.values.get("log_loss")
    return "right" if record.right else "another answer" + ("" if loss is None else f" (log loss {loss:.2f})")


def _joint(tasks: Sequence[TaskComparison]) -> JointDecision | None:
    decided = {one.base.task: one.decision for one in tasks if one.decision is not None}
    return decide_jointly(decided) if decided else None


def _with_both(
    found: Comparison,
    base: str | Path,
    model: str | Path,
    plans: Sequence[Prepared],
    options: EvalOptions,
    distribution: bool,
    blame: bool,
    progress: Progress,
) -> Comparison:
    """What needs both models in memory at once."""
    causal = all(predicts_next_token(plan.config) for plan in plans)
    vocabularies = {plan.config.get("vocab_size") for plan in plans}
    notes = []
    if distribution and (not causal or len(vocabularies) > 1 or not plans[0].tasks):
        notes.append(
            "next-token distributions were not compared: two causal models of one vocabulary are needed"
        )
        distribution = False
    need = sum(_float32_bytes(one) for one in (base, model))
    if (distribution or blame) and need > psutil.virtual_memory().available:
        notes.append(f"both models together need {need / 1e9:.1f} GB: distributions and blame were left out")
        distribution = blame = False
    if not (distribution or blame):
        return replace(found, notes=tuple(notes))
    first, second = load_for(base, options), load_for(model, options)
    apart = divergence(first, second, _sequences(plans[0], options), progress) if distribution else None
    blamed = _blamed(found, plans[1], first, second, options, progress) if blame else None
    return replace(found, divergence=apart, blame=blamed, notes=tuple(notes))


def _float32_bytes(model: str | Path) -> int:
    return 4 * sum(math.prod(stored.shape) for stored in Checkpoint.open(model).tensors.values())


def _sequences(plan: Prepared, options: EvalOptions) -> list[list[int]]:
    """Token ids of the tasks' first rows, up to a few thousand tokens shared among the tasks."""
    context = context_length(plan.config, plan.tokenizer, options.context)
    found: list[list[int]] = []
    for task in plan.tasks:
        room = _DIVERGENCE_TOKENS // len(plan.tasks)
        for row in task.rows:
            if room <= 0:
                break
            ids = list(plan.tokenizer(row.text, verbose=False)["input_ids"])[: min(context, room)]
            found += [ids] if ids else []
            room -= len(ids)
    return found


def _blamed(
    found: Comparison, plan: Prepared, base: Any, new: Any, options: EvalOptions, progress: Progress
) -> tuple[Blame, ...]:
    """Ask the flipped rows of all task files again with each changed matrix put back."""
    rows: list[tuple[Task, list[int]]] = []
    lost: list[bool] = []
    for task, one in zip(plan.tasks, found.tasks, strict=False):
        flips = _flips(one.base, one.new)[:_MOST_BLAMED]
        rows.append((task, [flip.row for flip in flips]))
        lost += [flip.direction == _LOST for flip in flips]
    if not lost:
        return ()
    parts = [(replace(task, rows=tuple(task.rows[i] for i in some))) for task, some in rows if some]
    asked = replace(plan, tasks=tuple(parts), harness=())

    def ask() -> list[bool]:
        scores = asked.evaluate(new).scores
        return [bool(record.right) for score in scores for record in score.records]

    return tuple(find_blame(base, new, lost, ask, progress))
