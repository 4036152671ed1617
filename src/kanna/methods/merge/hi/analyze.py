"""Where models of a recipe disagree; with tasks, what each block gives them, in experts and in the merge."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.checkpoint import lineage
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.methods.merge.disagreement import disagreement
from kanna.methods.merge.hi.blocks import Block, blocks_of
from kanna.methods.merge.hi.contributions import conflicts
from kanna.methods.merge.hi.merges import Merges
from kanna.methods.merge.hi.results import HiBlock, MergeAnalysis
from kanna.methods.merge.hi.state import GONE, WHOLE, State, everywhere
from kanna.methods.merge.hi.telling import block_told
from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.run import key_of, merge_plan
from kanna.methods.merge.tuning.endpoints import BASE, MERGE, ends, expert, tuned
from kanna.methods.merge.tuning.evaluating import Evaluator, alone, subjects
from kanna.methods.merge.tuning.expert_tasks import (
    ExpertTask,
    Split,
    expert_tasks,
    experts_named,
    files_of,
    options_for,
)
from kanna.methods.merge.tuning.held import tensors_of
from kanna.methods.merge.tuning.results import TunedTask
from kanna.methods.merge.tuning.samples import Notebook
from kanna.methods.merge.tuning.work import Work, foreseen
from kanna.progress import Progress
from kanna.result import Shown
from kanna.runs.record import Stages, run_record
from kanna.runs.results import check_free, result_path, write_result
from kanna.runs.unfinished import clear, unfinished_work
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import SCORING

KIND, _NOTES = "merge-analysis", "samples.jsonl"


@dataclass(frozen=True, repr=False)
class AnalysisResult(Shown):
    """What an analysis found.

    Args:
        analysis: See `MergeAnalysis`; None for a dry run.
        work: What it takes.
        file: Where the result was written, if anywhere.
    """

    analysis: MergeAnalysis | None
    work: Work
    run: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    def __repr__(self) -> str:
        done = "planned" if self.analysis is None else "done"
        return f"<AnalysisResult: {done}; written: {self.file or 'nothing'}>"

    def to_dict(self) -> dict[str, Any]:
        if self.analysis is None:
            return {"schema_version": 1, "kind": KIND, "work": self.work.to_dict()}
        return {**self.analysis.to_dict(), "run": dict(self.run)}


@dataclass(frozen=True)
class _Sources:
    """Makes models of blocks of the base, of experts, and of the merge.

    A row of a state has as many treatments as there are experts: none of them there is the base, one of them
    is that expert. A row with one treatment more is the merge.

    Args:
        plans: Of the base, the experts and the merge.
    """

    blocks: tuple[Block, ...]
    plans: tuple[MergePlan, ...]

    def tensors(self, state: State, names: Collection[str] | None = None) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, plan in enumerate(self.plans):
            wanted = {
                name
                for row, block in zip(state.rows, self.blocks, strict=True)
                if self._source(row) == number
                for name in block.tensors
            }
            if number == 0:  # what lies in no block is the same everywhere
                inside = {name for block in self.blocks for name in block.tensors}
                wanted |= {tensor.spec.name for tensor in plan.tensors} - inside
            wanted = wanted if names is None else wanted & set(names)
            found |= tensors_of(plan, wanted) if wanted else {}
        return found

    def _source(self, row: Sequence[object]) -> int:
        if len(row) == len(self.plans) - 1:
            return len(self.plans) - 1
        there = [number for number, one in enumerate(row, 1) if one != GONE]
        return there[0] if there else 0


def merge_analyze(
    recipe: str | Path | Mapping[str, Any],
    tasks: Mapping[str, str | Path] | Sequence[str] = (),
    *,
    base: str | None = None,
    group: int = 1,
    tau: float | None = None,
    calibration_share: float = 0.2,
    split_seed: int = 0,
    evaluation: EvalOptions | None = None,
    seed: int = 0,
    lax: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    announce: Callable[[Work], None] = lambda _: None,
    progress: Listener = False,
) -> AnalysisResult:
    """Norms, cosines and sign conflicts by layer; with tasks contributions and conflicts of every block, too.

    Contributions are those of experts as they are, and of what the recipe makes of them. Nothing is written
    but a result, where a folder is given for it.

    Args:
        recipe: A file in mergekit's YAML with one document, or what it would hold.
        tasks: Name of a model of the recipe -> the file of the task that it knows.
        base: The model that differences are taken from, where the recipe names none.
        group: Consecutive layers that are one block.
        tau: How much a task may lose in a block before it is hurt; by default one standard error.
        calibration_share: Of each task's rows, parted by groups; the others are left for tests.
        out: Folder for the result; evaluations are kept there until it is whole. Times and machine go to a
            file beside it, NAME.run.json.
        resume: Go on with an analysis that was interrupted.
        dry_run: Say only what it takes.

    Returns:
        Where the models disagree, and with tasks contributions and conflicts of every block.

    Raises:
        InputError: Whatever is wrong with recipe, models or tasks, and then nothing is written.
    """
    progress = heard(progress)
    started, stages = time.perf_counter(), Stages(progress)
    plan = merge_plan(recipe, seed=seed, lax=lax)
    if plan.before:
        raise InputError(
            f"{plan.recipe.place.name} has several documents, of which only one can be analysed",
            "make the others first, with kanna merge run, and name their directories",
        )
    scoring = options_for(evaluation or EvalOptions())
    name, asked = plan.recipe.place.name, None
    folder = None if out is None else Path(out)
    check_free(folder, KIND, name, force or dry_run)
    if resume and (folder is None or not tasks):
        raise InputError(
            "without tasks and a folder nothing is kept that could be resumed", "give --task and --out DIR"
        )
    work = foreseen(plan, (), 0, 0)
    if tasks:
        origin = base or plan.recipe.base
        if origin is None:
            raise InputError(
                f"{plan.recipe.method} has no base that gains are measured from", "add --base MODEL"
            )
        files = files_of(tasks, "--task")
        models = experts_named(files, plan, origin)
        split = Split(calibration_share, split_seed)
        parted = expert_tasks(files, {}, split, scoring)
        asked = _Asked(plan, origin, models, parted, blocks_of(plan, group), scoring, tau, split)
        work = foreseen(plan, parted, 4 * len(asked.blocks), 5)
    if dry_run:
        return AnalysisResult(None, work)
    if asked is None:
        return _kept(_found(plan, ((), ())), work, folder, name, force, started, stages, scoring)
    announce(work)
    with _notes(folder, asked.key, name, resume, force) as notes:
        told = _contributions(asked, Notebook.open(notes), stages.report)
        done = _kept(_found(plan, told), work, folder, name, force, started, stages, scoring)
        if notes is not None:
            clear(notes.parent)
    return done


def place_of_work(out: Path, recipe: str | Path) -> Path:
    """Beside what the folder of unfinished work lies."""
    return result_path(out, KIND, recipe).with_suffix("")


@contextmanager
def _notes(folder: Path | None, key: str, recipe: str, resume: bool, force: bool) -> Iterator[Path | None]:
    """The file of evaluations; None without a folder for the result."""
    if folder is None:
        yield None
        return
    place = place_of_work(folder, recipe)
    with unfinished_work(place, key, resume, force, survives=(_NOTES,)) as room:
        yield room / _NOTES


def _found(plan: MergePlan, told: tuple[tuple[TunedTask, ...], tuple[HiBlock, ...]]) -> MergeAnalysis:
    return MergeAnalysis(
        method=plan.recipe.method,
        base=None if plan.recipe.base is None else plan.inputs.lead.name,
        models=tuple(model.name for model in plan.inputs.models),
        disagreement=disagreement(plan),
        tasks=told[0],
        blocks=told[1],
    )


def _kept(
    found: MergeAnalysis,
    work: Work,
    folder: Path | None,
    name: str,
    force: bool,
    started: float,
    stages: Stages,
    scoring: EvalOptions,
) -> AnalysisResult:
    """The result, written where there is a folder for it: the same bytes, whenever and where it is made."""
    run = run_record(started, stages.seconds, scoring.device)
    file = write_result(folder, KIND, name, found.to_dict(), force, run=run)
    return AnalysisResult(found, work, run, file)


@dataclass(frozen=True)
class _Asked:
    plan: MergePlan
    base: str
    models: Mapping[str, str]
    tasks: tuple[ExpertTask, ...]
    blocks: tuple[Block, ...]
    scoring: EvalOptions
    tau: float | None
    split: Split

    @property
    def key(self) -> str:
        """sha256 of all that evaluations depend on."""
        facts = {
            "merge": key_of(self.plan),
            "models": [self.base, *self.models.items()],
            "base": key_of(alone(self.base)),  # the recipe may not hold it
            "tasks": [[task.name, task.calibration.digest] for task in self.tasks],
            "split": [self.split.share, self.split.seed],
            "blocks": [block.name for block in self.blocks],
            "evaluation": {key: str(value) for key, value in self.scoring},
            "scoring": SCORING,
            "threads": torch.get_num_threads(),
        }
        return lineage.digest_of(facts)


def _contributions(
    asked: _Asked, notebook: Notebook, progress: Progress
) -> tuple[tuple[TunedTask, ...], tuple[HiBlock, ...]]:
    plans = {BASE: alone(asked.base)}
    plans |= {expert(name): alone(model) for name, model in asked.models.items()}
    for name, one in plans.items():
        _refuse_unlike(asked.plan, one, name)
    with subjects({**plans, MERGE: asked.plan}) as found, tempfile.TemporaryDirectory() as room:
        evaluator = Evaluator(asked.tasks, asked.scoring, notebook)
        scales, _ = ends(asked.tasks, found, evaluator, progress)
        ground = Merges(
            _Sources(asked.blocks, (*plans.values(), asked.plan)), asked.tasks,
            tuple(scales[task.name] for task in asked.tasks), found[MERGE], evaluator, Path(room),
        )  # fmt: skip
        count = len(asked.tasks)
        merged = everywhere([WHOLE] * (count + 1), len(asked.blocks))
        blocks = conflicts(ground, [WHOLE] * count, merged, progress)
    told = tuple(block_told(one, ground.blocks[one.block], asked.tau) for one in blocks)
    return tuned(asked.tasks, scales, asked.scoring), told


def _refuse_unlike(plan: MergePlan, other: MergePlan, name: str) -> None:
    """Blocks can change places only between models of the same tensors."""
    shapes = [{one.spec.name: one.spec.shape for one in each.tensors} for each in (plan, other)]
    if shapes[0] != shapes[1]:
        unlike = min(set(shapes[0].items()) ^ set(shapes[1].items()))[0]
        raise InputError(
            f"{unlike} of the merge and of the {name} differ, so that their blocks cannot change places",
            "leave out --task, or analyse a recipe without slices and of the same tokens",
        )
