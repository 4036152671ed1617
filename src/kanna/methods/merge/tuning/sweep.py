"""Try every value of one or two numbers of a recipe, in memory, and write the merge that scores best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kanna.checkpoint import lineage
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.methods.merge.plan import DEFAULT_MEMORY, MergePlan, planned
from kanna.methods.merge.reading import read_recipe
from kanna.methods.merge.run import MergeResult, key_of, merge_plan, written_within
from kanna.methods.merge.tuning.axes import Axis, grid, read_axis, varied
from kanna.methods.merge.tuning.endpoints import MERGE, ends, guarded, opened, tested_ends, tuned
from kanna.methods.merge.tuning.evaluating import Evaluator, Subject, alone, tested
from kanna.methods.merge.tuning.expert_tasks import (
    ExpertTask,
    Split,
    expert_tasks,
    experts_named,
    files_of,
    models_named,
    options_for,
)
from kanna.methods.merge.tuning.guards import Guards, read_guards
from kanna.methods.merge.tuning.judging import judgement
from kanna.methods.merge.tuning.place import place_of
from kanna.methods.merge.tuning.results import SWEEP, Point, Sweep, SweptAxis
from kanna.methods.merge.tuning.samples import Notebook, Sample, best, worth
from kanna.methods.merge.tuning.work import Work, foreseen
from kanna.progress import Progress
from kanna.result import Shown
from kanna.runs.record import Stages, run_record
from kanna.runs.unfinished import clear, replaces, unfinished_work
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import SCORING

_NOTES = "samples.jsonl"


@dataclass(frozen=True, repr=False)
class SweepResult(Shown):
    """What a sweep found.

    Args:
        sweep: All points, and the best one; None for a dry run.
        written: The merge with its values; None where no output was asked for.
        work: What it takes.
        run: Times and memory of this run.
    """

    sweep: Sweep | None
    written: MergeResult | None
    work: Work
    run: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        out = "nothing" if self.written is None else self.written.out
        return f"<SweepResult: {'passed' if self.passed else 'failed'}; written: {out}>"

    @property
    def passed(self) -> bool:
        """Whether nothing is known to be wrong."""
        judged = self.sweep is None or self.sweep.test is None or self.sweep.test.passed
        return judged and (self.written is None or self.written.passed)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"schema_version": 1, "kind": "merge-sweep-plan"}
        if self.sweep is not None:
            written = None if self.written is None else self.written.to_dict()
            found = {**self.sweep.to_dict(), "written": written}
        return {**found, "work": self.work.to_dict(), "run": dict(self.run)}


@dataclass(frozen=True)
class _Field:
    """What is swept, checked and ready.

    Args:
        plan: Of the recipe as it stands.
        base: Name of the base, as the recipe has it.
        experts: Name of an expert, as its task has it -> the model, as the recipe has it.
        cells: Values to be tried.
    """

    plan: MergePlan
    base: str
    experts: Mapping[str, str]
    axes: tuple[Axis, ...]
    cells: Sequence[tuple[float, ...]]
    tasks: tuple[ExpertTask, ...]
    options: EvalOptions
    split: Split
    out_dtype: str | None
    max_memory: int
    max_drop: str | None
    guards: Guards

    def at(self, cell: Sequence[float]) -> MergePlan:
        """The plan with these values."""
        recipe = read_recipe(varied(self.plan.recipe.document, self.axes, cell), lax=True)
        return planned(recipe, self.out_dtype, self.max_memory, self.plan.seed, None, self.plan.inputs)

    @property
    def work(self) -> Work:
        return foreseen(self.plan, self.tasks, len(self.cells), 2)

    @property
    def key(self) -> str:
        """sha256 of all that a sweep depends on."""
        facts = {
            "recipe": key_of(self.plan),
            "dtype": self.out_dtype,
            "axes": [[axis.parameter, axis.model, axis.values] for axis in self.axes],
            "base": [self.base, key_of(alone(self.base))],  # the recipe may not hold it
            "tasks": [[task.name, task.calibration.digest, task.test.digest] for task in self.tasks],
            "split": [self.split.share, self.split.seed],
            "options": {key: str(value) for key, value in self.options},
            "max_drop": self.max_drop,
            "guards": self.guards.key,
            "scoring": SCORING,
            "threads": torch.get_num_threads(),
        }
        return lineage.digest_of(facts)


def merge_sweep(
    recipe: str | Path | Mapping[str, Any],
    vary: Sequence[str],
    tasks: Mapping[str, str | Path] | Sequence[str],
    out: str | Path | None = None,
    *,
    tests: Mapping[str, str | Path] | Sequence[str] = (),
    base: str | None = None,
    calibration_share: float = 0.2,
    split_seed: int = 0,
    max_drop: str | None = None,
    guards: Sequence[str] = (),
    evaluation: EvalOptions | None = None,
    out_dtype: str | None = None,
    max_memory: int = DEFAULT_MEMORY,
    seed: int = 0,
    lax: bool = False,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    announce: Callable[[Work], None] = lambda _: None,
    progress: Listener = False,
) -> SweepResult:
    """Score a merge for every value of one or two numbers, and write the best; see `merge_plan`, `merge`.

    Merges are made in memory. The score of a task is (P - P_base) / (P_expert - P_base) on its calibration
    rows, the mean over tasks counts, and the mean probability of the right answers breaks ties. The best
    merge, the experts and the base are then compared on the other rows.

    Args:
        recipe: A file in mergekit's YAML with one document, or what it would hold.
        vary: Such as `lambda=0.3:1.2:0.1`, or `weight@NAME=0,0.5,1` of one model.
        tasks: Name of a model of the recipe -> the file of the task that it knows.
        out: New directory; None only searches.
        tests: Likewise, rows for the test alone; all rows of that task choose then.
        base: The model that gains are measured from, where the recipe names none.
        calibration_share: Of each task's rows, parted by groups, for what chooses.
        split_seed: By which they are drawn.
        max_drop: What may be lost beside each expert: 1% of its score, or 1pt. None only measures.
        guards: FILE=3%: text or rows on which no more may be lost beside the base.
        evaluation: How rows are scored.
        dry_run: Say only what it takes.
        announce: Called with what it takes before the long work begins.

    Returns:
        All cells with their scores, the best one, and how what was written fares.

    Raises:
        InputError: Whatever is wrong, and then nothing is written; among it an expert that gains nothing.
    """
    progress = heard(progress)
    started = time.perf_counter()
    plan = merge_plan(recipe, out_dtype=out_dtype, max_memory=max_memory, seed=seed, lax=lax)
    place = _place(plan, out, force, resume)
    split = Split(calibration_share, split_seed)
    swept = _field(
        plan, vary, files_of(tasks, "--task"), files_of(tests, "--test"), base, split, max_drop,
        evaluation or EvalOptions(), out_dtype, max_memory, guards,
    )  # fmt: skip
    announce(swept.work)
    if dry_run:
        return SweepResult(None, None, swept.work)
    stages = Stages(progress)
    with (
        opened(swept.plan, swept.base, swept.experts, swept.tasks, swept.options) as found,
        _room(place, swept.key, force, resume) as work,
    ):
        notebook = Notebook.open(None if work is None else work / _NOTES)
        sweep = _swept(swept, found, Evaluator(swept.tasks, swept.options, notebook), stages.report)
        written = None
        if place is not None and work is not None:
            chosen = swept.at(sweep.points[sweep.chosen].values)
            replacing = replaces(place, force, resume)
            told = {SWEEP: sweep.to_dict()}
            last, done = written_within(chosen, place, work, replacing, max_memory, stages, told)
            written = MergeResult(place, last, done.figures, done.verdict, done.note)
            clear(work)
    run = run_record(started, stages.seconds, swept.options.device)
    if place is not None:
        lineage.write_run_record(place, run)
    return SweepResult(sweep, written, swept.work, run)


def _place(plan: MergePlan, out: str | Path | None, force: bool, resume: bool) -> Path | None:
    """Where the result goes, if anywhere; raises InputError where it must not go there."""
    if out is None:
        if resume:
            raise InputError("without an output nothing is kept that could be resumed", "give --out DIR")
        return None
    return place_of(plan, out, force, resume)


def _field(
    plan: MergePlan,
    vary: Sequence[str],
    tasks: Mapping[str, Path],
    tests: Mapping[str, Path],
    base: str | None,
    split: Split,
    max_drop: str | None,
    evaluation: EvalOptions,
    out_dtype: str | None,
    max_memory: int,
    guards: Sequence[str],
) -> _Field:
    recipe = plan.recipe
    if plan.before:
        raise InputError(
            f"{recipe.place.name} has several documents, of which only one can be swept",
            "make the others first, with kanna merge run, and name their directories",
        )
    origin = base or recipe.base
    if origin is None:
        raise InputError(f"{recipe.method} has no base that gains are measured from", "add --base MODEL")
    names = models_named(plan)
    experts = experts_named(tasks, plan, origin)
    options = options_for(evaluation)
    axes = tuple(read_axis(text, recipe, names) for text in vary)
    parted = expert_tasks(tasks, tests, split, options)
    return _Field(
        plan, origin, experts, axes, grid(axes), parted, options, split, out_dtype, max_memory, max_drop,
        read_guards(guards, options),
    )  # fmt: skip


@contextmanager
def _room(place: Path | None, key: str, force: bool, resume: bool) -> Iterator[Path | None]:
    """The folder of unfinished work; None without an output."""
    with ExitStack() as stack:
        work = None
        if place is not None:
            held = unfinished_work(place, key, resume, force, survives=(_NOTES,))
            work = stack.enter_context(held)
        yield work


def _swept(swept: _Field, found: Mapping[str, Subject], evaluator: Evaluator, progress: Progress) -> Sweep:
    scales, _ = ends(swept.tasks, found, evaluator, progress)
    points: list[tuple[tuple[float, ...], dict[str, Sample]]] = []
    for number, cell in enumerate(swept.cells):
        progress("sweep", number, len(swept.cells))
        key = " ".join(f"{value:.12g}" for value in cell)
        if missing := evaluator.missing(key):
            subject = found[MERGE]
            evaluator.score(key, subject, subject.model(swept.options, swept.at(cell)), missing)
        points.append((cell, evaluator.scored(key)))
    progress("sweep", len(swept.cells), len(swept.cells))
    worths = [worth(scales, scored) for _, scored in points]
    chosen = best(worths)
    told = tuple(
        Point(
            values=cell,
            scores={name: one.score for name, one in scored.items()},
            probabilities={name: one.probability for name, one in scored.items()},
            normalised=value.normalised,
            probability=value.probability,
        )
        for (cell, scored), value in zip(points, worths, strict=True)
    )
    merged = found[MERGE].model(swept.options, swept.at(swept.cells[chosen]))
    of_merge = tested(found[MERGE], merged, swept.tasks, swept.options, progress)
    held = guarded(swept.guards, found, merged, swept.options)
    of_base, of_experts = tested_ends(swept.tasks, found, swept.options, progress)
    return Sweep(
        method=swept.plan.recipe.method,
        base=alone(swept.base).inputs.lead.name,
        models=tuple(model.name for model in swept.plan.inputs.models),
        axes=tuple(SweptAxis(name=axis.name, values=axis.values) for axis in swept.axes),
        tasks=tuned(swept.tasks, scales, swept.options),
        settings={
            "calibration_share": swept.split.share,
            "split_seed": swept.split.seed,
            "seed": swept.plan.seed,
            "metric": swept.options.metric,
            "context": found[MERGE]
            .prepared([task.calibration for task in swept.tasks], swept.options)
            .context,
        },
        evaluations=swept.work.evaluations,
        points=told,
        chosen=chosen,
        test=judgement(swept.tasks, of_base, of_experts, of_merge, swept.max_drop, held),
    )
