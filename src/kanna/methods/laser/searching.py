"""Search for the edit that makes a model better on a task: validation, choice, test, and the edited model."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.checkpoint import lineage
from kanna.errors import InputError
from kanna.methods.laser.arena import (
    JOURNAL,
    Arena,
    SearchOptions,
    fingerprint,
    open_arena,
    workspace,
)
from kanna.methods.laser.choose import by_accuracy, choose, pareto
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.results import RESULT, Figures, Model, Search, Task, Tested, TestedBy, Trial
from kanna.methods.laser.run import LaserResult, laser_apply
from kanna.methods.laser.search import Found, base_trial, exhaustive, fast
from kanna.methods.laser.space import Candidate
from kanna.methods.laser.validation import Validation
from kanna.runs.criteria import Criteria
from kanna.runs.record import Stages, run_record
from kanna.runs.request import Origin
from kanna.runs.unfinished import refuse_existing, replaces
from kanna.search.journal import Journal
from kanna.tasks.evaluate import headline
from kanna.tasks.metrics.breakdown import breakdown
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore
from kanna.tasks.scorers.edited import EditedTask
from kanna.tasks.verdict.tolerance import decide, parse_tolerance

__all__ = ["RESULT", "SearchOptions", "SearchResult", "laser_search", "test_edits"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Args:
        found: All that `laser-search.json` holds.
        applied: The written model; None where no output was asked for.
        run: Times and work of this run.
    """

    found: Search
    applied: LaserResult | None
    run: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        return self.found.to_dict()

    @property
    def passed(self) -> bool:
        return self.applied is None or self.applied.passed

    def to_dict(self) -> dict[str, Any]:
        written = None if self.applied is None else self.applied.to_dict()
        return {**self.result, "applied": written, "run": self.run}


def laser_search(
    model: str | Path,
    task: str | Path,
    out: str | Path | None = None,
    options: SearchOptions | None = None,
    *,
    evaluation: EvalOptions | None = None,
    config: LaserConfig | None = None,
    criteria: Criteria | None = None,
    force: bool = False,
    resume: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> SearchResult:
    """Find the best rank reduction of one matrix on a task, and write the model with it.

    The model as it is takes part; if nothing beats it, the output is a bit-identical copy. Test rows are
    looked at once, after the choice.

    Args:
        model: Directory, or hub id in the local cache.
        task: Rows with answers or choices.
        out: New directory; None only searches.
        evaluation: How rows are scored.
        config: How the edit is stored (factored, keep_originals).
        criteria: Tasks with tolerances for the written model.
        resume: Continue an unfinished search for `out`.

    Raises:
        InputError: Whatever is wrong with the request, before anything is written.
    """
    started = time.perf_counter()
    chosen = options or SearchOptions()
    asked = evaluation or EvalOptions()
    stored = config or LaserConfig()
    if stored.factored and chosen.blocks != (1,):
        raise InputError("factors hold one block of rows only", "leave out --blocks, or --factored")
    target = None if out is None else Path(out).expanduser().absolute()
    if target is not None:
        refuse_existing(target, force or resume)
    arena = open_arena(model, task, chosen, asked, criteria)
    replacing = target is not None and replaces(target, force, resume)
    if target is not None:
        refuse_existing(target, replacing)
    stages = Stages(progress)
    with workspace(target, fingerprint(arena), resume, force) as directory:
        journal = Journal.open(None if directory is None else directory / JOURNAL)
        validation = arena.validation(journal, directory)
        try:
            search, best = _search(arena, validation, stages.report)
            work = {
                "layer_tokens": validation.layer_tokens,
                "decompositions": arena.weights.decompositions,
                "blocks": len(arena.found.blocks),
            }
        finally:
            validation.close()
        written = None
        if target is not None:
            edits = (best.edit,) if best is not None else ()
            settings = stored.model_copy(update={"edits": edits, "blocks": best.blocks if best else 1})
            origin = Origin("laser search", _facts(search), {RESULT: search.to_dict()}, arena.task.digest)
            written = laser_apply(
                model, target, settings, force=replacing, device=asked.device, cache=cache, criteria=criteria,
                options=asked, origin=origin, within=directory, progress=stages.report,
            )  # fmt: skip
        if directory is not None:
            shutil.rmtree(directory)
    run = run_record(started, stages.seconds, asked.device) | {"work": work}
    if target is not None:
        lineage.write_run_record(target, run)
    return SearchResult(search, written, run)


def _search(arena: Arena, validation: Validation, progress: Progress) -> tuple[Search, Trial | None]:
    """The result, and the chosen edit if there is one."""
    options = arena.options
    candidates = arena.candidates()
    base = base_trial(validation.base(len(arena.parts), progress))
    if options.budget.fast is None:
        found = exhaustive(validation, candidates, options.budget, progress)
    else:
        found = fast(validation, candidates, options.budget, arena.model, arena.weights, progress)
    by_edit = {(candidate.edit, candidate.blocks): candidate for candidate in candidates}

    def perplexity(trial: Trial) -> float:
        progress("perplexity", 0, 1)
        return arena.perplexity([by_edit[trial.edit, trial.blocks]] if trial.edit else [])

    measure = perplexity if options.text is not None else None
    whole = [trial for trial in found.trials if trial.rows == base.rows]
    best, measured = choose(base, whole, options.rule, options.max_ppl_rise, measure)
    if measure is not None:
        base = base.measured(measure(base))
        if best.edit and best.perplexity is None:
            best = best.measured(measure(best))
            measured = [*measured, best]
        best = best if best.edit else base
    shown = best if best.edit else next(iter(by_accuracy(whole)), None)
    tested = None if shown is None else test_edits(arena, [by_edit[shown.edit, shown.blocks]], progress)
    known = {(trial.edit, trial.blocks): trial for trial in measured}
    trials = [known.get((trial.edit, trial.blocks), trial) for trial in found.trials]
    return _result(arena, found, base, best, trials, tested), best if best.edit else None


def test_edits(arena: Arena, candidates: Sequence[Candidate], progress: Progress) -> Tested:
    """The model as it is, with these edits, and two controls of the same size, on rows that chose nothing."""
    task = EditedTask(arena.plan, arena.test, arena.model, arena.found, arena.options.memory)
    try:
        base = task.base(progress, {min(candidate.matrix.layer for candidate in candidates)})
        modes = ("top", "magnitude", "random")
        variants = [arena.weights.edits(candidates, mode, arena.options.seed) for mode in modes]
        edit, magnitude, random = task.edited(variants, progress)
    finally:
        task.close()
    decision = decide(base, edit, tolerance=parse_tolerance("0"))
    scores = {"base": base, "edit": edit, "magnitude": magnitude, "random": random}
    return Tested(
        edits=[candidate.edit for candidate in candidates],
        rows=len(base.records),
        metric=base.metric,
        floors=dict(base.floors),
        base=_figures(base),
        edit=_figures(edit),
        magnitude=_figures(magnitude),
        random=_figures(random),
        difference=decision.difference,
        interval=list(decision.interval),
        confidence=decision.confidence,
        p_flips=decision.p_flips,
        lost=decision.lost,
        gained=decision.gained,
        **_tested_by(arena, scores),
    )


def _figures(score: TaskScore) -> Figures:
    names = (score.metric, "log_loss", "consistency")
    metrics = {name: score.metrics[name] for name in names if name in score.metrics}
    return Figures.model_validate({"value": score.value, **metrics})


def _tested_by(arena: Arena, scores: Mapping[str, TaskScore]) -> dict[str, Any]:
    """Where scores by a key were asked for."""
    key = arena.options.by
    if key is None:
        return {}
    groups = {name: breakdown(score, arena.test.rows, key) for name, score in scores.items()}
    return {"by": TestedBy.model_validate({"key": key, **groups})}


def _result(
    arena: Arena, found: Found, base: Trial, best: Trial, trials: list[Trial], tested: Tested | None
) -> Search:
    whole = [trial for trial in trials if trial.rows == base.rows]
    return Search(
        schema_version=1,
        kind="laser-search",
        model=Model(name=arena.source.name, hash=arena.source.hash),
        task=Task(
            name=arena.task.name,
            sha256=arena.task.digest,
            kind=arena.task.kind,
            metric=headline(arena.task, arena.plan.options),
            rows=len(arena.task.rows),
            validation_rows=len(arena.choosing),
            test_rows=len(arena.test.rows),
        ),
        layers=len(arena.found.blocks),
        settings=arena.options.settings(),
        candidates=len(arena.candidates()),
        evaluations=len(whole) + 1,
        matrices=len(arena.matrices),
        left_out=found.left_out,
        base=base,
        trials=trials,
        predicted=dict(found.predicted),
        pareto=pareto([base, *whole]),
        chosen=best,
        base_wins=not best.edit,
        test=tested,
    )


def _facts(search: Search) -> dict[str, Any]:
    kept = {"task", "base", "chosen", "base_wins", "test"}
    return {"search": search.model_dump(include=kept, exclude_unset=True)}
