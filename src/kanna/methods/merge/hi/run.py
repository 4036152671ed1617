"""Hi-Merging, from Python; the verb takes it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kanna.checkpoint import lineage
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.methods.merge.hi.asked import Asked, asked_for, files_of, ground_of, mixing_of, named, opened
from kanna.methods.merge.hi.config import LAYER, MODEL, HiOptions
from kanna.methods.merge.hi.ground import mean_normalised, normalised
from kanna.methods.merge.hi.merges import Merges
from kanna.methods.merge.hi.resolving import Round, Rules, resolved
from kanna.methods.merge.hi.results import HiOutcome
from kanna.methods.merge.hi.signs import resolved_by_signs, sign_conflicts
from kanna.methods.merge.hi.stage_one import Cell, chosen, grids
from kanna.methods.merge.hi.state import WHOLE, Treatment, everywhere
from kanna.methods.merge.hi.telling import expert_told, part_told, round_told
from kanna.methods.merge.plan import DEFAULT_MEMORY, MergePlan
from kanna.methods.merge.run import MergeResult, written_within
from kanna.methods.merge.tuning.endpoints import MERGE, ends, guarded, tested_ends, tuned
from kanna.methods.merge.tuning.evaluating import Evaluator, Subject, tested
from kanna.methods.merge.tuning.expert_tasks import ExpertTask
from kanna.methods.merge.tuning.judging import judgement
from kanna.methods.merge.tuning.place import place_of
from kanna.methods.merge.tuning.results import Judgement
from kanna.methods.merge.tuning.samples import Notebook
from kanna.methods.merge.tuning.work import Work
from kanna.progress import Progress
from kanna.result import Shown
from kanna.runs.record import Stages, run_record
from kanna.runs.unfinished import clear, replaces, unfinished_work
from kanna.tasks.options import EvalOptions

_NOTES = "samples.jsonl"
KEY = "hi"


@dataclass(frozen=True, repr=False)
class HiResult(Shown):
    """What Hi-Merging found.

    Args:
        outcome: All of it; None for a dry run.
        written: The merge.
        work: What it takes, at most.
        run: Times and memory of this run.
    """

    outcome: HiOutcome | None
    written: MergeResult | None
    work: Work
    run: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        out = "nothing" if self.written is None else self.written.out
        return f"<HiResult: {'passed' if self.passed else 'failed'}; written: {out}>"

    @property
    def passed(self) -> bool:
        """Whether nothing is known to be wrong."""
        judged = self.outcome is None or self.outcome.test is None or self.outcome.test.passed
        return judged and (self.written is None or self.written.passed)

    def to_dict(self) -> dict[str, Any]:
        told = None if self.outcome is None else self.outcome.to_dict()
        written = None if self.written is None else self.written.to_dict()
        found = {KEY: told, "written": written, "work": self.work.to_dict(), "run": dict(self.run)}
        return {"schema_version": 1, "kind": "merge-hi", **found}


def merge_hi(
    base: str | Path,
    experts: Mapping[str, str | Path] | Sequence[str],
    tasks: Mapping[str, str | Path] | Sequence[str],
    out: str | Path | None,
    options: HiOptions | None = None,
    *,
    tests: Mapping[str, str | Path] | Sequence[str] = (),
    max_drop: str | None = None,
    guards: Sequence[str] = (),
    evaluation: EvalOptions | None = None,
    out_dtype: str | None = None,
    max_memory: int = DEFAULT_MEMORY,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    announce: Callable[[Work], None] = lambda _: None,
    progress: Listener = False,
) -> HiResult:
    """Merge experts of one base by Hi-Merging: their sum, in which conflicts are resolved block by block.

    With `stages` both each expert is pruned and scaled before, by its own task; model does that alone. With
    `data_free` no task is asked: blocks are ranked by sign conflicts of the weights alone, p and s are 1
    where nothing is said, and nothing tells whether a step is better. `tests` then only judge the result.

    Args:
        base: Directory, or hub id in the local cache.
        experts: Name -> model, perhaps with an adapter (MODEL+ADAPTER).
        tasks: Name of an expert -> the file of its task; rows that it was trained on say nothing. None with
            `data_free`.
        out: New directory; None only for a dry run.
        tests: Likewise, rows for the test alone; all rows of that task choose then.
        max_drop: What may be lost beside each expert on the test rows: 1% of its score, or 1pt.
        guards: FILE=3%: text or rows on which no more may be lost beside the base.
        evaluation: How rows are scored.
        out_dtype: Of the output; by default the widest of the models.
        resume: Go on with a run that was interrupted, to the same bytes.
        announce: Called with what it takes at most before the long work begins.

    Returns:
        The merge that was written, and what every stage found.

    Raises:
        InputError: Whatever is wrong, and then nothing is written; among it an expert that gains nothing.
    """
    progress = heard(progress)
    started = time.perf_counter()
    asked = asked_for(
        str(base), named(experts, "--expert"), files_of(tasks, "--task"), files_of(tests, "--test"),
        options or HiOptions(), evaluation or EvalOptions(), out_dtype, max_memory, max_drop, guards,
    )  # fmt: skip
    work = asked.work
    place = None if out is None else place_of(asked.plan, out, force, resume)
    if dry_run:
        announce(work)
        return HiResult(None, None, work)
    if place is None:
        raise InputError("there is no place for the result", "give --out DIR")
    announce(work)
    stages = Stages(progress)
    with (
        opened(asked) as found,
        unfinished_work(place, asked.key, resume, force, survives=(_NOTES,)) as room,
    ):
        notebook = Notebook.open(room / _NOTES)
        evaluator = Evaluator(asked.tasks, asked.evaluation, notebook)
        if asked.options.data_free:
            outcome, plan, tokens = *_without_tasks(asked, found, stages.report), 0.0
        else:
            outcome, plan, tokens = _merged(asked, found, evaluator, room, stages.report)
        replacing = replaces(place, force, resume)
        last, done = written_within(
            plan, place, room, replacing, max_memory, stages, more={KEY: outcome.to_dict()}
        )
        written = MergeResult(place, last, done.figures, done.verdict, done.note)
        clear(room)
    run = run_record(started, stages.seconds, asked.evaluation.device)
    run |= {"evaluated": evaluator.done, "layer_tokens": tokens}
    lineage.write_run_record(place, run)
    return HiResult(outcome, written, work, run)


def _merged(
    asked: Asked, found: Mapping[str, Subject], evaluator: Evaluator, room: Path, progress: Progress
) -> tuple[HiOutcome, MergePlan, float]:
    """What was found, the plan of the merge, and blocks times tokens that were computed for single blocks."""
    scales, dropped = ends(asked.tasks, found, evaluator, progress, asked.options.drop_useless)
    mixing = mixing_of(asked, scales)
    ground = ground_of(asked, mixing, scales, found[MERGE], evaluator, room)
    cells = _grids(asked, ground, progress)
    treatments = [chosen(some) if some else WHOLE for some in cells]
    share = 1.0 if asked.options.combine == "sum" else 1 / len(ground.experts)
    begun = everywhere(treatments, len(ground.blocks), share)
    state, rounds = begun, list[Round]()
    if asked.options.stages != MODEL:
        rules = Rules(asked.options.tau, _rounds(asked))
        state, rounds = resolved(ground, treatments, begun, rules, progress)
    outcome = HiOutcome(
        base=asked.plan.inputs.lead.name,
        experts=tuple(
            expert_told(name, treatment, some)
            for name, treatment, some in zip(ground.experts, treatments, cells, strict=True)
        ),
        dropped=dropped,
        tasks=tuned(ground.tasks, scales, asked.evaluation),
        settings={
            **asked.options.used,
            "metric": asked.evaluation.metric,
            "context": found[MERGE].prepared([asked.tasks[0].calibration], asked.evaluation).context,
        },
        before=mean_normalised(ground, begun),
        after=mean_normalised(ground, state),
        normalised=tuple(normalised(ground, state)),
        evaluations=len(evaluator.notebook.known),
        rounds=tuple(round_told(one, ground.blocks, asked.options.tau) for one in rounds),
        parts=tuple(part_told(name, row) for name, row in zip(ground.blocks, state.rows, strict=True)),
    )
    plan = mixing.plan(state)
    tests = _judged(asked, found, ground.tasks, plan, progress)
    return outcome.model_copy(update={"test": tests}), plan, ground.layer_tokens


def _without_tasks(
    asked: Asked, found: Mapping[str, Subject], progress: Progress
) -> tuple[HiOutcome, MergePlan]:
    """What signs of weights say, and the plan of the merge."""
    options, names = asked.options, tuple(asked.models)
    mixing, treatment = mixing_of(asked, names), Treatment(asked.kept[0], asked.scales[0])
    share = 1.0 if options.combine == "sum" else 1 / len(names)
    begun = everywhere([treatment] * len(names), len(asked.blocks), share)
    conflicts = sign_conflicts(mixing, treatment, progress)
    state, done = resolved_by_signs(names, treatment, begun, conflicts, options.tau)
    blocks = [block.name for block in asked.blocks]
    plan = mixing.plan(state)
    test = _judged(asked, found, asked.tasks, plan, progress) if asked.tasks else None
    outcome = HiOutcome(
        base=asked.plan.inputs.lead.name,
        experts=tuple(expert_told(name, treatment, ()) for name in names),
        dropped=(),
        tasks=(),
        settings=options.used,
        before=None,
        after=None,
        normalised=(),
        evaluations=0,
        rounds=(round_told(done, blocks, options.tau),),
        parts=tuple(part_told(name, row) for name, row in zip(blocks, state.rows, strict=True)),
        test=test,
    )
    return outcome, plan


def _rounds(asked: Asked) -> int:
    """As many as the budget allows."""
    most, budget = asked.evaluations, asked.options.max_evaluations
    if budget is None:
        return most.rounds
    further = (budget - most.first_round) // (most.again + most.steps)
    return min(most.rounds, 1 + further)


def _grids(asked: Asked, ground: Merges, progress: Progress) -> Sequence[Sequence[Cell]]:
    if asked.options.stages == LAYER:
        return [[] for _ in ground.experts]
    return grids(ground, asked.kept, asked.scales, progress)


def _judged(
    asked: Asked,
    found: Mapping[str, Subject],
    tasks: Sequence[ExpertTask],
    plan: MergePlan,
    progress: Progress,
) -> Judgement:
    subject = found[MERGE]
    model = subject.model(asked.evaluation, plan)
    merged = tested(subject, model, tasks, asked.evaluation, progress)
    held = guarded(asked.guards, found, model, asked.evaluation)
    of_base, of_experts = tested_ends(tasks, found, asked.evaluation, progress)
    return judgement(tasks, of_base, of_experts, merged, asked.max_drop, held)
