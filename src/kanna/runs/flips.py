"""Rows that one model answers right and the other wrong, and what is said there now."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kanna.progress import Progress
from kanna.result import replace
from kanna.runs.evaluations import answers_opened
from kanna.runs.opened import Opened
from kanna.tasks.data.task import Task
from kanna.tasks.evaluate import Prepared
from kanna.tasks.records import Record, TaskScore
from kanna.tasks.verdict.comparison import GAINED, LOST, Comparison, Flip, TaskComparison

_NOTHING = "(nothing)"


def flips_of(base: TaskScore, new: TaskScore) -> list[Flip]:
    """Lost before gained, those whose log-likelihood fell most first."""
    pairs = zip(base.records, new.records, strict=True)
    known = [(one, two) for one, two in pairs if one.right is not None and two.right is not None]
    flipped = [_flip(one, two) for one, two in known if one.right != two.right]
    return sorted(flipped, key=lambda flip: (flip.direction != LOST, -flip.change))


def written_out(
    compared: Comparison,
    new: Opened,
    plan: Prepared,
    *,
    fresh: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Comparison:
    """The same, where the answers that were lost are those that the new model writes.

    A score by likelihood says only that another answer is likelier; for the few rows that are shown the model
    is asked what it is. Models that write nothing are left out.

    Args:
        plan: Of the evaluation of `new`.
        fresh: Ask again what is kept from an earlier comparison.
        cache: Where that is; kanna's cache directory by default.
    """
    ask = partial(answers_opened, new, plan, fresh=fresh, cache=cache, progress=progress)
    files = {task.name: task for task in plan.tasks}
    tasks = tuple(
        _task_written(scored, files[scored.task], ask) if scored.task in files else scored
        for scored in compared.tasks
    )
    return replace(compared, tasks=tasks)


def _task_written(
    compared: TaskComparison, task: Task, ask: Callable[[Task, Sequence[int]], list[str] | None]
) -> TaskComparison:
    records = compared.new.records
    lost = [flip for flip in compared.flips if flip.direction == LOST and not records[flip.row].predicted]
    if not lost:
        return compared
    texts = ask(task, [flip.row for flip in lost])
    if texts is None:
        return compared
    said = {flip.row: text.strip() or _NOTHING for flip, text in zip(lost, texts, strict=True)}
    flips = tuple(replace(flip, new=said.get(flip.row, flip.new)) for flip in compared.flips)
    return replace(compared, flips=flips)


def _flip(base: Record, new: Record) -> Flip:
    return Flip(
        row=base.row,
        prompt=base.prompt,
        expected=base.expected,
        base=base.predicted or _described(base),
        new=new.predicted or _described(new),
        direction=LOST if base.right else GAINED,
        change=new.values.get("log_loss", 0.0) - base.values.get("log_loss", 0.0),
    )


def _described(record: Record) -> str:
    """What stands for an answer that was not written out."""
    loss = record.values.get("log_loss")
    return "right" if record.right else "another answer" + ("" if loss is None else f" (log loss {loss:.2f})")


def directions(flips: Sequence[Flip]) -> tuple[int, int]:
    """How many were lost, and how many gained."""
    lost = sum(flip.direction == LOST for flip in flips)
    return lost, len(flips) - lost
