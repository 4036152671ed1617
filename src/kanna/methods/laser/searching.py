"""Search for the edit that makes a model better on a task: validation, choice, test, and the edited model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.methods.laser.arena import Arena, fingerprint, open_arena
from kanna.methods.laser.choose import by_accuracy, choose, pareto
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.finding import Choice, Finding, Job
from kanna.methods.laser.results import RESULT, Model, Search, Task, Tested, Trial
from kanna.methods.laser.search import Found, base_trial, exhaustive, fast
from kanna.methods.laser.search_config import SearchOptions
from kanna.methods.laser.space import Candidate
from kanna.methods.laser.validation import Validation
from kanna.progress import Progress
from kanna.runs.criteria import Criteria
from kanna.runs.request import Origin
from kanna.tasks.evaluate import headline
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TaskScore
from kanna.tasks.verdict.tolerance import decide, parse_tolerance

__all__ = ["RESULT", "SearchOptions", "SearchResult", "laser_search", "test_edits"]

SearchResult = Finding[Search]


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
    progress: Listener = False,
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

    Returns:
        What was tried and chosen (`found`), and the model that was written, if one was (`applied`).

    Raises:
        InputError: Whatever is wrong with the request, before anything is written.
    """
    progress = heard(progress)
    chosen = options or SearchOptions()
    stored = config or LaserConfig()
    if stored.factored and chosen.blocks != (1,):
        raise InputError("factors hold one block of rows only", "leave out --blocks, or --factored")
    job = Job(model, out, stored, criteria, force, resume, cache, progress)
    arena = open_arena(model, task, chosen, evaluation or EvalOptions(), criteria)
    return job.carried_out(arena, fingerprint(arena), partial(_choice, arena))


def _choice(arena: Arena, validation: Validation, progress: Progress) -> Choice[Search]:
    search, best = _search(arena, validation, progress)
    kept = {"task", "base", "chosen", "base_wins", "test"}
    facts = {"search": search.model_dump(include=kept, exclude_unset=True)}
    work = {
        "layer_tokens": validation.layer_tokens,
        "decompositions": arena.weights.decompositions,
        "blocks": len(arena.found.blocks),
    }
    return Choice(
        search,
        [] if best is None else [best.edit],
        1 if best is None else best.blocks,
        Origin("laser search", facts, {RESULT: search.to_dict()}, arena.task.digest),
        {"work": work},
    )


def _search(arena: Arena, validation: Validation, progress: Progress) -> tuple[Search, Trial | None]:
    """The result, and the chosen edit if there is one."""
    options = arena.options
    candidates = arena.candidates()
    base = base_trial(validation.base(len(arena.parts), progress))
    if options.budget.fast is None:
        tried = exhaustive(validation, candidates, options.budget, progress)
    else:
        tried = fast(validation, candidates, options.budget, arena.model, arena.weights, progress)
    by_edit = {(candidate.edit, candidate.blocks): candidate for candidate in candidates}

    def perplexity(trial: Trial) -> float:
        progress("perplexity", 0, 1)
        return arena.perplexity([by_edit[trial.edit, trial.blocks]] if trial.edit else [])

    measure = perplexity if options.text is not None else None
    whole = [trial for trial in tried.trials if trial.rows == base.rows]
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
    trials = [known.get((trial.edit, trial.blocks), trial) for trial in tried.trials]
    return _result(arena, tried, base, best, trials, tested), best if best.edit else None


def test_edits(arena: Arena, candidates: Sequence[Candidate], progress: Progress) -> Tested:
    """The model as it is, with these edits, and two controls of the same size, on rows that chose nothing."""
    modes = ("top", "magnitude", "random")
    scored = arena.scored(arena.test, candidates, modes, progress)
    scores = dict(zip(("base", "edit", "magnitude", "random"), scored, strict=True))
    base = scores["base"]
    decision = decide(base, scores["edit"], tolerance=parse_tolerance("0"))
    by = arena.by_key(arena.test, scores)
    return Tested.model_validate(
        {
            "edits": [candidate.edit for candidate in candidates],
            "metric": base.metric,
            "floors": dict(base.floors),
            **{name: _figures(score) for name, score in scores.items()},
            **decision.to_dict(),
            **({} if by is None else {"by": by}),
        }
    )


def _figures(score: TaskScore) -> dict[str, float]:
    names = (score.metric, "log_loss", "consistency")
    return {"value": score.value} | {name: score.metrics[name] for name in names if name in score.metrics}


def _result(
    arena: Arena, tried: Found, base: Trial, best: Trial, trials: list[Trial], tested: Tested | None
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
        left_out=tried.left_out,
        base=base,
        trials=trials,
        predicted=dict(tried.predicted),
        pareto=pareto([base, *whole]),
        chosen=best,
        base_wins=not best.edit,
        test=tested,
    )
