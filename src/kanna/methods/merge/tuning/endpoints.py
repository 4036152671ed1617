"""The ends of every scale: what the base and each expert score, where 0 and 1 of a normalised score are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.tuning.evaluating import Evaluator, Subject, alone, subjects, tested
from kanna.methods.merge.tuning.expert_tasks import ExpertTask
from kanna.methods.merge.tuning.guards import Guards
from kanna.methods.merge.tuning.results import JudgedGuard, TunedTask
from kanna.methods.merge.tuning.samples import Scale, scale
from kanna.progress import Progress
from kanna.tasks.evaluate import headline
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore

BASE, MERGE = "base", "merge"


def expert(name: str) -> str:
    """Under which name an expert is evaluated."""
    return f"expert {name}"


def ends(
    tasks: Sequence[ExpertTask],
    found: Mapping[str, Subject],
    evaluator: Evaluator,
    progress: Progress,
    drop_useless: bool = False,
) -> tuple[dict[str, Scale], tuple[str, ...]]:
    """The scale of each task, by what the base and its expert score on the calibration rows.

    Args:
        drop_useless: Leave out tasks whose experts gain nothing.

    Returns:
        Scales by name of the expert, and the experts that were left out.

    Raises:
        InputError: An expert gains nothing, or all do.
    """
    asked = [(BASE, list(tasks)), *((expert(task.name), [task]) for task in tasks)]
    for number, (name, some) in enumerate(asked):
        progress("base and experts", number, len(asked))
        if missing := evaluator.missing(name, some):
            evaluator.score(name, found[name], found[name].model(evaluator.options), missing)
    progress("base and experts", len(asked), len(asked))
    known = evaluator.notebook.known
    scales: dict[str, Scale] = {}
    dropped: list[str] = []
    for one in tasks:
        of_base, of_expert = known[BASE, one.name], known[expert(one.name), one.name]
        if drop_useless and of_expert.score <= of_base.score and (len(dropped) + 1 < len(tasks)):
            dropped.append(one.name)
        else:
            scales[one.name] = scale(one.calibration.name, one.name, of_base, of_expert)
    return scales, tuple(dropped)


def tested_ends(
    tasks: Sequence[ExpertTask], found: Mapping[str, Subject], options: EvalOptions, progress: Progress
) -> tuple[dict[str, TaskScore], dict[str, TaskScore]]:
    """The base, and each expert on its task, on the test rows."""
    base = tested(found[BASE], found[BASE].model(options), tasks, options, progress)
    experts: dict[str, TaskScore] = {}
    for task in tasks:
        one = found[expert(task.name)]
        experts |= tested(one, one.model(options), [task], options, progress)
    return base, experts


def guarded(
    guards: Guards, found: Mapping[str, Subject], merged: nn.Module, options: EvalOptions
) -> tuple[JudgedGuard, ...]:
    """The merge beside the base on what must not suffer."""
    if not guards.tasks:
        return ()
    base = guards.scored(found[BASE], found[BASE].model(options), options)
    return guards.judged(base, guards.scored(found[MERGE], merged, options))


def tuned(
    tasks: Sequence[ExpertTask], scales: Mapping[str, Scale], options: EvalOptions
) -> tuple[TunedTask, ...]:
    """What is told of the tasks."""
    return tuple(
        TunedTask(
            expert=task.name,
            task=task.calibration.name,
            sha256=task.calibration.digest,
            metric=headline(task.calibration, options),
            calibration_rows=len(task.calibration.rows),
            test_rows=len(task.test.rows),
            base=scales[task.name].base,
            gain=scales[task.name].gain,
        )
        for task in tasks
    )


@contextmanager
def opened(
    plan: MergePlan, base: str, experts: Mapping[str, str], tasks: Sequence[ExpertTask], options: EvalOptions
) -> Iterator[dict[str, Subject]]:
    """The merge, the base and the experts, each fit to be evaluated on what it is asked.

    Raises:
        InputError: One cannot be evaluated on a task.
    """
    plans = {MERGE: plan, BASE: alone(base)}
    plans |= {expert(name): alone(model) for name, model in experts.items()}
    with subjects(plans) as found:
        for name, subject in found.items():
            asked = [task for task in tasks if name in (MERGE, BASE, expert(task.name))]
            if asked:
                subject.prepared([task.calibration for task in asked], options)
        yield found
