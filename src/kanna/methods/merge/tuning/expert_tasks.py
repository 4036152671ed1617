"""Tasks as they are named, NAME=FILE: the expert that knows one, rows that choose, and rows that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from kanna.errors import InputError
from kanna.methods.merge.plan import MergePlan
from kanna.tasks.data.overlap import shared
from kanna.tasks.data.rows import Row
from kanna.tasks.data.split import split_rows
from kanna.tasks.data.task import HARNESS, Task, load_tasks
from kanna.tasks.evaluate import headline
from kanna.tasks.metrics.user_metric import parse_user_metric
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import ANSWER, CHOICE

# Fewer calibration rows cannot tell one candidate from another.
FEWEST_ROWS = 20
_NO_MEAN = ("bleu",)
# What the figure is called elsewhere.
_LOGLOSS = "logloss"


@dataclass(frozen=True)
class Split:
    """How rows are parted.

    Args:
        share: Of each task's rows, for calibration, where no rows for the test are given.
        seed: By which they are drawn.
    """

    share: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class ExpertTask:
    """A task with the expert that knows it.

    Args:
        name: Of the expert.
        calibration: Rows that choose; where none does, those of the test.
        test: Rows that choose nothing.
    """

    name: str
    calibration: Task
    test: Task


def read_pairs(given: Sequence[str], flag: str) -> dict[str, Path]:
    """NAME=FILE, each name once.

    Raises:
        InputError: One is neither; a name stands twice.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, _, file = text.partition("=")
        if not name or not file:
            raise InputError(f"{flag} {text!r} names no expert and a file", f"write {flag} NAME=FILE")
        if name in found:
            raise InputError(f"{flag} names {name} twice", "give one file for each expert")
        found[name] = Path(file)
    return found


def files_of(given: Mapping[str, str | Path] | Sequence[str], flag: str) -> dict[str, Path]:
    """The same, where it may be a mapping already."""
    if isinstance(given, Mapping):
        return {name: Path(file) for name, file in given.items()}
    return read_pairs(given, flag)


def experts_named(tasks: Mapping[str, Path], plan: MergePlan, base: str) -> dict[str, str]:
    """Name of an expert, as its task has it -> the model, as the recipe has it.

    Raises:
        InputError: There is no task, or one of no model that is merged.
    """
    if not tasks:
        raise InputError("there is no task to score by", "add --task NAME=FILE for each expert")
    names = models_named(plan)
    there = sorted(name for name, given in names.items() if given != base and name != given)
    for name in tasks:
        if name not in names or names[name] == base:
            raise InputError(
                f"the task of {name} has no expert: it is no model that is merged",
                f"write --task NAME=FILE, NAME one of {', '.join(there)}",
            )
    return {name: names[name] for name in tasks}


def models_named(plan: MergePlan) -> dict[str, str]:
    """Any name of a model of a recipe -> as the recipe has it."""
    recipe = plan.recipe
    names = {model.name: given for given, model in zip(recipe.models, plan.inputs.models, strict=True)}
    return {**names, **{given: given for given in recipe.models}}


def expert_tasks(
    tasks: Mapping[str, Path], tests: Mapping[str, Path], split: Split, options: EvalOptions
) -> tuple[ExpertTask, ...]:
    """Read and part the rows of all tasks.

    Args:
        tasks: Name of an expert -> the file of its task.
        tests: The same of rows for the test alone; then all rows of its task choose.

    Raises:
        InputError: Rows that cannot be read, too few of them, or of which some both choose and judge.
    """
    if stray := next((name for name in tests if name not in tasks), None):
        raise InputError(f"--test names {stray}, of which no task is given", f"add --task {stray}=FILE")
    return tuple(_read(name, file, tests.get(name), split, options) for name, file in tasks.items())


def judging_tasks(tests: Mapping[str, Path], options: EvalOptions) -> tuple[ExpertTask, ...]:
    """Rows that judge a merge that no task has chosen.

    Args:
        tests: Name of an expert -> the file.

    Raises:
        InputError: Rows that cannot be read, or have no answers.
    """
    found = []
    for name, file in tests.items():
        (task,) = load_tasks([file], options.limit)
        _check_kind(task, options)
        found.append(ExpertTask(name, task, task))
    return tuple(found)


def _read(name: str, file: Path, test: Path | None, split: Split, options: EvalOptions) -> ExpertTask:
    if str(file).startswith(HARNESS):
        raise InputError(f"{file} has no rows that choose", "give a file of rows with answers or choices")
    task, *others = load_tasks([file] if test is None else [file, test], options.limit)
    for one in (task, *others):
        _check_kind(one, options)
    if others:
        _refuse_shared(task, others[0])
        found = ExpertTask(name, task, others[0])
    else:
        choosing, rest = split_rows(task.rows, split.share, split.seed)
        found = ExpertTask(name, _rows(task, choosing), _rows(task, rest))
    _check_number(found.calibration, len(task.rows), None if others else split.share)
    return found


def _rows(task: Task, places: Sequence[int]) -> Task:
    return replace(task, rows=tuple(task.rows[place] for place in places))


def _check_kind(task: Task, options: EvalOptions) -> None:
    if task.kind not in (CHOICE, ANSWER):
        raise InputError(f"{task.name} has no answers", "give rows with answers or choices")
    if headline(task, options) in _NO_MEAN:
        raise InputError(
            f"{headline(task, options)} is no mean over rows, so that no rows can choose by it",
            "choose a metric such as greedy, exact or f1",
        )


def _check_number(task: Task, rows: int, share: float | None) -> None:
    if len(task.rows) >= FEWEST_ROWS:
        return
    needed = FEWEST_ROWS if share is None else ceil(FEWEST_ROWS / share)
    more = "" if share is None else ", or a larger --calibration-share"
    raise InputError(
        f"{task.name} leaves {len(task.rows)} of {rows} rows for calibration, which decide nothing",
        f"give a task of at least {needed} rows{more}",
    )


def _refuse_shared(task: Task, test: Task) -> None:
    """Rows that choose must not judge, nor others of their group."""
    common = _groups(task.rows) & _groups(test.rows)
    if common:
        raise InputError(
            f"{task.name} and {test.name} share {len(common)} groups, such as {min(common)!r}",
            "put all rows of a group on one side",
        )
    if both := shared(task.rows, test.rows):
        number, row = both[0]
        raise InputError(
            f"{len(both)} rows of {test.name} ask what rows of {task.name} ask, such as row {number} of the "
            f"latter: {row.asked[:60]!r}",
            "take them out of one of the files",
        )


def _groups(rows: Sequence[Row]) -> set[str]:
    return {row.group for row in rows if row.group}


def options_for(options: EvalOptions) -> EvalOptions:
    """With the metric's own name; its own way of writing is checked here.

    Raises:
        InputError: The metric is a function or a command that is not there.
    """
    if options.metric == _LOGLOSS:
        return options.model_copy(update={"metric": "log_loss"})
    own = None if options.metric is None else parse_user_metric(options.metric)
    if own is not None:
        own.check()
    return options
