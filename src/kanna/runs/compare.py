"""Is the new model still right: the same tasks, the same rows, an interval, and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from torch import nn

from kanna.checked import check_type
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.progress import Progress, of
from kanna.result import replace
from kanna.runs.blame import blame as find_blame
from kanna.runs.criteria import Criteria
from kanna.runs.evaluations import evaluate_opened
from kanna.runs.flips import directions, flips_of, written_out
from kanna.runs.next_steps import without_the_worst
from kanna.runs.opened import Opened
from kanna.runs.source import Source
from kanna.tasks.data.task import Task
from kanna.tasks.evaluate import Prepared
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TEXT, Evaluation, TaskScore
from kanna.tasks.scorers.divergence import divergence
from kanna.tasks.tokens.special import end_of, without
from kanna.tasks.tokens.tokenizer import context_length, predicts_next_token
from kanna.tasks.verdict.comparison import (
    EMPTY,
    LOST,
    NOT_JUDGED,
    Blame,
    Comparison,
    TaskComparison,
    VerdictStatus,
)
from kanna.tasks.verdict.floor import nothing_to_lose
from kanna.tasks.verdict.paired import IDENTICAL
from kanna.tasks.verdict.repeats import repeated
from kanna.tasks.verdict.tolerance import FAIL, PASS, UNDECIDED, decide, decide_jointly

_DIVERGENCE_TOKENS = 4096
# Per token; text beyond is not looked at.
_MOST_CHARACTERS = 20
# Flipped examples that --blame asks again for each matrix.
_MOST_BLAMED = 64
_UNJUDGED = "no tolerance was given, so nothing is decided"
_COLUMNS = ("task", "rows", "metric", "base", "this model", "interval of the change", "allowed", "verdict")


def compare(
    base: str | Path | Opened,
    model: str | Path | Opened,
    criteria: Criteria,
    options: EvalOptions | None = None,
    *,
    examples: int = 10,
    distribution: bool = True,
    blame: bool = False,
    fresh: bool = False,
    cache: Path | None = None,
    read: Sequence[Task] | None = None,
    progress: Listener = False,
) -> Comparison:
    """Evaluate both models on the tasks of `criteria`, one in memory at a time, and decide.

    Bit-identical weights (with the same tokenizer) pass outright. `distribution` and `blame` hold both models
    in memory, where they fit: then the first one stays there. Each model is hashed once and loaded at most
    once. A base that is handed over open is released before the other model is loaded, if not both must be in
    memory.

    Args:
        examples: Flips to show per task.
        distribution: Measure KL divergence and top-1 agreement of next-token distributions.
        blame: Find which changed matrix, put back alone, repairs most flips.
        read: The task files, where they have been read before with the same limit.

    Returns:
        The verdict (`status`, `passed`, `explanation`), and of each task scores, interval and flips.

    Raises:
        InputError: Whatever is wrong with a model, a task or the request.
    """
    progress = heard(progress)
    check_type("criteria", criteria, Criteria, 'write kanna.criteria_of("app.jsonl", "1%")', required=True)
    check_type("options", options, EvalOptions, "write kanna.EvalOptions(...)")
    sides = _Sides(Opened.open(base), Opened.open(model))
    chosen = _common_context(sides, options or EvalOptions())
    plans = [sides.base.prepared_for(criteria, chosen, read)]
    plans.append(sides.new.prepared_for(criteria, chosen, plans[0].tasks))
    identical = sides.base.identity == sides.new.identity
    sequences = [_sequences(plan, chosen) for plan in plans]
    _check_texts(plans, sequences[0] == sequences[1])
    apart = None if not distribution else _no_distribution(plans, sequences)
    together = not identical and (blame or (distribution and apart is None))
    first = evaluate_opened(sides.base, plans[0], fresh=fresh, cache=cache, progress=of(progress, "base"))
    if not (together and sides.fit(chosen)):
        sides.base.release()
    second = (
        replace(first, model=plans[1].name, bytes=plans[1].bytes)
        if identical
        else evaluate_opened(sides.new, plans[1], fresh=fresh, cache=cache, progress=of(progress, "new"))
    )
    found = _decided(first, second, criteria, identical, examples)
    if identical:
        return replace(found, notes=(*found.notes, "the weights are bit-identical"))
    found = written_out(found, sides.new, plans[1], fresh=fresh, cache=cache, progress=of(progress, "new"))
    if apart is not None:
        reason = f"next-token distributions were not compared: {apart}"
        found = replace(found, notes=(*found.notes, reason))
    if not together:
        return found
    measured = sequences[0] if distribution and apart is None else None
    return _with_both(found, sides, plans, measured, blame, progress)


def _decided(
    first: Evaluation, second: Evaluation, criteria: Criteria, identical: bool, examples: int
) -> Comparison:
    """Task by task, and all tasks together."""
    tasks = tuple(
        _task(one, two, criteria, identical, examples)
        for one, two in zip(first.scores, second.scores, strict=True)
    )
    decided = {task.base.task: task.decision for task in tasks if task.decision is not None}
    guards = {task.task for task in tasks if task.guard}
    texts = {task.task for task in tasks if task.kind == TEXT}
    metrics = {task.task: task.metric for task in tasks}
    joint = decide_jointly(decided, guards, texts, metrics) if decided else None
    status: VerdictStatus
    status, explanation = (NOT_JUDGED, _UNJUDGED) if joint is None else (joint.status, joint.explanation)
    nothing = nothing_to_lose(tasks, criteria.confidence) if status in (PASS, UNDECIDED) else ""
    if nothing and not criteria.accept_empty:
        status, explanation = EMPTY, f"{nothing}: there is nothing to lose"
    notes = tuple(note for one in tasks for note in (*_unlike(one), *_repeats(one)))
    notes += (f"empty, and accepted: {nothing}",) if nothing and criteria.accept_empty else ()
    return Comparison.of(first, second, criteria.confidence, status, explanation, tasks, notes=notes)


def judge(
    base: str | Path | Opened,
    written: Path | Opened,
    name: str,
    criteria: Criteria,
    options: EvalOptions,
    *,
    prepared: Prepared | None = None,
    loaded: nn.Module | None = None,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Comparison:
    """Compare a freshly written directory with its base.

    Args:
        base: Open already, it is neither hashed nor loaded again.
        written: It may still have a provisional name. Nobody has touched it since: it is not verified.
        name: The one it will have.
        prepared: What was read of the tasks, for any model and the same `options`, before the run began.
        loaded: The model of `written` in memory; used if `options` ask for that dtype and device.
    """
    new = Opened.open(written, trusted=True)
    if loaded is not None:
        new.hold(loaded)
    read = None if prepared is None else prepared.tasks
    comparison = compare(
        base, new, criteria, options, distribution=False, cache=cache, read=read, progress=progress
    )
    return replace(comparison, model=replace(comparison.model, model=name))


def comparison_rows(compared: Comparison) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns and rows of a model card's table."""
    rows: list[tuple[object, ...]] = []
    for task in compared.tasks:
        decision = task.decision
        judged = ("", "", "not judged")
        if decision is not None:
            low, high = decision.interval
            judged = (f"{low:+.4f} to {high:+.4f}", f"{decision.allowed:+.4f}", decision.status)
        values = (f"{task.base_value:.4f}", f"{task.new_value:.4f}")
        count = f"{task.rows} windows" if task.kind == TEXT else task.rows
        rows.append((task.task, count, task.metric, *values, *judged))
    return _COLUMNS, rows


@dataclass(frozen=True)
class _Sides:
    """The two models of a comparison."""

    base: Opened
    new: Opened

    def missing(self, options: EvalOptions) -> int:
        """Bytes of those that are not in memory."""
        return sum(side.bytes_in(options.dtype) for side in (self.base, self.new) if not side.holds(options))

    def fit(self, options: EvalOptions) -> bool:
        """Whether both can be in memory at once."""
        return self.missing(options) <= psutil.virtual_memory().available


def _common_context(sides: _Sides, options: EvalOptions) -> EvalOptions:
    """Both read as much: the context of the one that reads less."""
    if options.context is not None:
        return options
    both = (sides.base, sides.new)
    return replace(
        options, context=min(context_length(side.checkpoint.config, side.tokenizer, None) for side in both)
    )


def _check_texts(plans: Sequence[Prepared], same_tokens: bool) -> None:
    """Raise InputError where two models would be compared on different windows of a text."""
    texts = [task.name for task in plans[0].tasks if task.kind == TEXT]
    if texts and not same_tokens:
        raise InputError(
            f"{texts[0]} cannot be compared: the tokenizers of {plans[0].name} and {plans[1].name} cut text "
            "differently, and perplexity is per token",
            "compare them on questions, or with a metric of answers",
        )


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
    flips = flips_of(base, new)
    lost, gained = directions(flips)
    return TaskComparison.of(base, new, rule.guard, decision, flips[:examples], lost, gained)


def _unlike(task: TaskComparison) -> list[str]:
    """A note where the score of a task is not the mean of its rows, which is what is judged."""
    change, decision = task.new.value - task.base.value, task.decision
    if decision is None or math.isclose(change, decision.difference, rel_tol=1e-4, abs_tol=1e-6):
        return []
    return [
        f"{task.base.task}: the change and its interval are of the mean over rows; base and new show "
        f"{task.base.metric} of all rows together"
    ]


def _repeats(task: TaskComparison) -> list[str]:
    """A note where rows stand in a task several times, which makes its figures no surer."""
    count = repeated(task.base.records)
    if task.decision is None or task.decision.method == IDENTICAL or not count:
        return []
    what = "window" if task.kind == TEXT else "row"
    some = f"1 {what} repeats another" if count == 1 else f"{count:,} {what}s repeat others"
    return [f"{task.base.task}: {some}, and equal {what}s count as one"]


def _with_both(
    compared: Comparison,
    sides: _Sides,
    plans: Sequence[Prepared],
    sequences: Sequence[Sequence[int]] | None,
    blame: bool,
    progress: Progress,
) -> Comparison:
    """What needs both models in memory at once.

    Args:
        sequences: Token ids on which next-token distributions are compared; None where they are not.
    """
    options, notes = plans[0].options, list(compared.notes)
    if not sides.fit(options):
        need = sum(side.bytes_in(options.dtype) for side in (sides.base, sides.new))
        note = f"both models together need {need / 1e9:.1f} GB: distributions and blame were left out"
        return replace(compared, notes=(*notes, note))
    first, second = sides.base.loaded(options), sides.new.loaded(options)
    apart = None if sequences is None else divergence(first, second, sequences, progress)
    blamed = None
    if blame:
        try:
            blamed = _blamed(compared, plans[1], first, second, progress)
            notes += _not_asked_again(compared)
        except InputError as error:
            notes.append(f"nothing was put back: {error.problem}")
    advice = None
    if blamed and compared.status == FAIL:
        lost = sum(min(task.lost, _MOST_BLAMED) for task in compared.tasks)
        try:
            places = (sides.base.directory, sides.new.directory)
            advice = without_the_worst(blamed, lost, Source(sides.base).inventory, *places)
        except InputError as error:
            notes.append(f"no selection is advised: {error.problem}")
    steps = () if advice is None else (advice,)
    return replace(
        compared,
        distribution=apart,
        blame=blamed,
        notes=tuple(notes),
        next_steps=(*compared.next_steps, *steps),
    )


def _no_distribution(plans: Sequence[Prepared], sequences: Sequence[Sequence[Sequence[int]]]) -> str | None:
    """Why next-token distributions of these two models cannot be compared; None where they can."""
    if not all(predicts_next_token(plan.config) for plan in plans):
        return "that takes two causal models"
    if not sequences[0]:
        return "there is no task file whose text could be read"
    if sequences[0] != sequences[1]:
        return "the tokenizers cut text differently"
    if len({plan.config.get("vocab_size") for plan in plans}) > 1:
        return "the vocabularies differ in size"
    return None


def _sequences(plan: Prepared, options: EvalOptions) -> list[list[int]]:
    """Token ids of the tasks' first rows, up to a few thousand tokens shared among the tasks."""
    context = context_length(plan.config, plan.tokenizer, options.context)
    end = end_of(plan.tokenizer)
    sequences: list[list[int]] = []
    for task in plan.tasks:
        room = _DIVERGENCE_TOKENS // len(plan.tasks)
        for row in task.rows:
            if room <= 0:
                break
            text = row.text[: _MOST_CHARACTERS * room]
            ids = without(plan.tokenizer(text, verbose=False)["input_ids"], end)[: min(context, room)]
            sequences += [ids] if ids else []
            room -= len(ids)
    return sequences


def _not_asked_again(compared: Comparison) -> list[str]:
    """A note for each task of which too many answers flipped."""
    counts = {task.task: task.lost + task.gained for task in compared.tasks}
    return [
        f"{name}: with matrices put back, {_MOST_BLAMED} of the {count:,} flipped answers were asked again"
        for name, count in counts.items()
        if count > _MOST_BLAMED
    ]


def _blamed(
    compared: Comparison, plan: Prepared, base: Any, new: Any, progress: Progress
) -> tuple[Blame, ...]:
    """Ask the flipped rows of all task files again with each changed matrix put back."""
    parts: list[Prepared] = []
    lost: list[bool] = []
    for task, scored in zip(plan.tasks, compared.tasks, strict=False):
        flips = flips_of(scored.base, scored.new)[:_MOST_BLAMED]
        if flips:
            rows = tuple(task.rows[flip.row] for flip in flips)
            parts.append(_asked_again(plan, replace(task, rows=rows), scored.new))
        lost += [flip.direction == LOST for flip in flips]
    if not lost:
        return ()

    def ask() -> list[bool]:
        scores = [score for part in parts for score in part.evaluate(new).scores]
        return [bool(record.right) for score in scores for record in score.records]

    return tuple(find_blame(base, new, lost, ask, progress))


def _asked_again(plan: Prepared, task: Task, scored: TaskScore) -> Prepared:
    """A few rows of a task, asked as all of them were; costs are of no account."""
    new_tokens = plan.options.new_tokens or scored.settings.get("new_tokens")
    options = replace(plan.options, new_tokens=new_tokens, costs=None)
    return replace(plan, tasks=(task,), harness=(), options=options)
