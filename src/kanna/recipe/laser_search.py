"""Search for the edit that makes a model better on a task: validation, choice, test, and the edited model."""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint, refuse_quantized
from kanna.errors import InputError
from kanna.methods.laser.choose import CONSTRAINED, PUBLISHED, Trial, by_accuracy, choose, pareto
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.plan import tensor_of
from kanna.methods.laser.search import Budget, Found, base_trial, exhaustive, fast
from kanna.methods.laser.space import RHOS, Candidate, space
from kanna.methods.laser.validation import EditedTask, Journal, Validation, by_groups, parts_of
from kanna.methods.laser.weights import Weights
from kanna.methods.lowrank.workspace import write_json_whole
from kanna.models.device import device_of
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix
from kanna.models.selection import select, selection_from
from kanna.recipe.criteria import Criteria
from kanna.recipe.evaluations import load_for
from kanna.recipe.laser_apply import LaserResult, Origin, laser_apply
from kanna.recipe.lowrank import refuse_existing
from kanna.recipe.places import RUN, work_directory
from kanna.recipe.runs import Stages, run_record
from kanna.tasks.breakdown import breakdown
from kanna.tasks.evaluate import EvalOptions, Prepared, headline, prepare
from kanna.tasks.records import TEXT, TaskScore
from kanna.tasks.resumed import applied
from kanna.tasks.rows import read_rows
from kanna.tasks.split import split_rows
from kanna.tasks.task import Task
from kanna.tasks.text import score_text, text_metrics
from kanna.tasks.tokenizer import context_length, predicts_next_token
from kanna.tasks.tolerance import decide, parse_tolerance
from kanna.tasks.user_metric import metric_info, parse_user_metric

Progress = Callable[[str, int, int], None]
RESULT = "laser-search.json"
JOURNAL = "tallies.jsonl"
# Fewer validation rows cannot tell one edit from another.
FEWEST_VALIDATION_ROWS = 20
_TEXT_TOKENS = 8192


@dataclass(frozen=True)
class SearchOptions:
    """What a search looks at, and how it chooses.

    Args:
        roles: Roles or groups, such as "mlp" or "mlp_in,mlp_out".
        layers: Such as "all", "-8-", "0,3-5".
        rhos: Shares of the largest rank, as texts.
        blocks: Numbers of row blocks to try.
        budget: Exhaustive or fast, and limits.
        rule: "constrained" or "published"; see `kanna.methods.laser.choose`.
        max_ppl_rise: Allowed relative rise of perplexity on `text`, 0.02 by default; None allows any.
        text: Plain text for it.
        text_tokens: Of the text, at most.
        share: Of the rows, for validation.
        first: Take the first rows for validation, as the published code does.
        test: A task file of its own for the final figure; all rows of the task then choose.
        by: Key of the rows by which the final figure is also given, such as "frequency".
        seed: Of the split, the order of rows and the random control.
        memory: Bytes of hidden states kept in memory.
    """

    roles: str = "mlp"
    layers: str = "all"
    rhos: tuple[str, ...] = RHOS
    blocks: tuple[int, ...] = (1,)
    budget: Budget = field(default_factory=Budget)
    rule: str = CONSTRAINED
    max_ppl_rise: float | None = 0.02
    text: Path | None = None
    text_tokens: int = _TEXT_TOKENS
    share: float = 0.2
    first: bool = False
    test: Path | None = None
    by: str | None = None
    seed: int = 0
    memory: int = 2**31

    @property
    def selection(self) -> str:
        """As `kanna.models.selection` reads it."""
        return selection_from(None if self.layers in ("all", "*") else self.layers, self.roles)

    def to_dict(self) -> dict[str, Any]:
        """What a result depends on; memory is not part of it."""
        facts = {key: value for key, value in vars(self).items() if key not in ("memory", "budget")}
        paths = {key: None if facts[key] is None else Path(facts[key]).name for key in ("text", "test")}
        lists = {"rhos": list(self.rhos), "blocks": list(self.blocks)}
        return {**facts, **paths, **lists, "budget": dict(vars(self.budget))}


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Args:
        result: All that `laser-search.json` holds.
        applied: The written model; None where no output was asked for.
        run: Times and work of this run.
    """

    result: dict[str, Any]
    applied: LaserResult | None
    run: dict[str, Any]

    @property
    def passed(self) -> bool:
        return self.applied is None or self.applied.passed

    def to_dict(self) -> dict[str, Any]:
        written = None if self.applied is None else self.applied.to_dict()
        return {**self.result, "applied": written, "run": self.run}


@dataclass(frozen=True)
class Arena:
    """A loaded model, a task in two parts, and what may be tried.

    Args:
        checkpoint: The model on disk.
        plan: The evaluation.
        task: All rows of the task.
        choosing: Places of the validation rows, in the order of the parts.
        parts: How many rows each part has.
        test: The rows of the final figure.
        model: In float32, in evaluation mode.
        found: Its inventory.
        weights: Of candidates.
        matrices: Those that may be reduced.
        options: Of the search.
    """

    checkpoint: Checkpoint
    plan: Prepared
    task: Task
    choosing: tuple[int, ...]
    parts: tuple[int, ...]
    test: Task
    model: nn.Module
    found: Inventory
    weights: Weights
    matrices: tuple[Matrix, ...]
    options: SearchOptions

    @property
    def validation_task(self) -> Task:
        return replace(self.task, rows=tuple(self.task.rows[place] for place in self.choosing))

    def candidates(self) -> list[Candidate]:
        return space(self.matrices, self.found.matrices, self.options.rhos, self.options.blocks)

    def validation(self, journal: Journal, directory: Path | None) -> Validation:
        return Validation(
            self.plan, self.validation_task, self.parts, self.model, self.found, self.weights, journal,
            self.options.memory, directory,
        )  # fmt: skip

    def perplexity(self, candidates: Sequence[Candidate]) -> float:
        """Of the text, with these edits."""
        assert self.options.text is not None
        rows = read_rows(self.options.text)
        context = context_length(self.plan.config, self.plan.tokenizer, self.plan.options.context)
        with applied(self.model, self.weights.edits(candidates)):
            records, size = score_text(
                self.model, self.plan.tokenizer, rows, context, max(1, context // 2),
                self.options.text_tokens, lambda *_: None,
            )  # fmt: skip
        return text_metrics(records, size)["perplexity"]


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
    target = None if out is None else Path(out).expanduser().absolute()
    if target is not None:
        refuse_existing(target, force)
    arena = open_arena(model, task, chosen, asked)
    stages = Stages(progress)
    with workspace(target, fingerprint(arena), resume, force) as directory:
        journal = Journal.open(None if directory is None else directory / JOURNAL)
        validation = arena.validation(journal, directory)
        try:
            result, best = _search(arena, validation, stages.report)
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
            settings = (config or LaserConfig()).model_copy(
                update={"edits": edits, "blocks": best.blocks if best else 1}
            )
            origin = Origin("laser search", _facts(result), {RESULT: result}, arena.task.digest)
            written = laser_apply(
                model, target, settings, force=force, device=asked.device, cache=cache, criteria=criteria,
                options=asked, origin=origin, progress=stages.report,
            )  # fmt: skip
        if directory is not None:
            shutil.rmtree(directory)
    run = run_record(started, stages.seconds, asked.device) | {"work": work}
    if target is not None:
        lineage.write_run_record(target, run)
    return SearchResult(result, written, run)


def open_arena(model: str | Path, task: str | Path, options: SearchOptions, evaluation: EvalOptions) -> Arena:
    """Read and check everything, split the rows, load the model.

    Raises:
        InputError: A quantised or unknown model, an unknown role or layer, rho outside 0 to 1, a task of
            plain text, too few validation rows, a metric that is not better when higher.
    """
    device_of(evaluation.device)
    checkpoint = Checkpoint.open(model)
    refuse_quantized(checkpoint.config, checkpoint.name)
    files = [task] if options.test is None else [task, options.test]
    plan = prepare(checkpoint.directory, files, evaluation)
    if plan.harness:
        raise InputError(f"{task} cannot be searched on", "give a file of rows with answers or choices")
    first = plan.tasks[0]
    _check_task(plan, first, options)
    choosing, rest = _split(first, options)
    test = (
        plan.tasks[1] if options.test is not None else replace(first, rows=tuple(first.rows[i] for i in rest))
    )
    groups = by_groups(first.rows, choosing, options.seed)
    parts = parts_of(groups, options.budget.part_sizes())
    loaded = load_for(checkpoint.directory, evaluation)
    found = inventory(loaded)
    matrices = select(found.matrices, options.selection)

    def stored(matrix: Matrix) -> torch.dtype:
        return checkpoint.dtype(tensor_of(checkpoint, found, matrix))

    arena = Arena(
        checkpoint=checkpoint,
        plan=plan,
        task=first,
        choosing=tuple(place for part in parts for place in part),
        parts=tuple(map(len, parts)),
        test=test,
        model=loaded,
        found=found,
        weights=Weights(loaded, stored),
        matrices=matrices,
        options=options,
    )
    arena.candidates()  # raises where a rho is out of range
    return arena


def _check_task(plan: Prepared, task: Task, options: SearchOptions) -> None:
    if task.kind == TEXT:
        raise InputError(f"{task.name} is plain text", "give rows with answers or choices")
    metric = headline(task, plan.options)
    own = parse_user_metric(metric)
    higher = not own.lower_is_better if own else metric_info(metric, task.kind).higher_is_better
    if metric == "bleu" or not higher:
        raise InputError(
            f"{metric} cannot be searched on: it is no mean over rows where more is better",
            "choose a metric such as acc, greedy, exact or f1",
        )
    if options.text is None and options.max_ppl_rise not in (None, SearchOptions.max_ppl_rise):
        raise InputError("--max-ppl-rise needs a text to measure perplexity on", "add --text FILE")
    if options.text is not None and not predicts_next_token(plan.config):
        raise InputError(f"{plan.name} is no causal language model", "leave out --text")
    if options.rule not in (PUBLISHED, CONSTRAINED):
        raise InputError(f"there is no rule {options.rule!r}", f"choose {CONSTRAINED} or {PUBLISHED}")


def _split(task: Task, options: SearchOptions) -> tuple[list[int], list[int]]:
    rows = len(task.rows)
    if options.test is not None:
        choosing, rest = list(range(rows)), []
    elif options.first:
        count = int(options.share * rows)
        choosing, rest = list(range(count)), list(range(count, rows))
    else:
        choosing, rest = split_rows(task.rows, options.share, options.seed)
    if len(choosing) < FEWEST_VALIDATION_ROWS:
        raise InputError(
            f"{task.name} leaves {len(choosing)} of {rows} rows for validation, too few to tell edits apart",
            f"give a task of at least {round(FEWEST_VALIDATION_ROWS / options.share)} rows, or a larger "
            "--validation-share",
        )
    return choosing, rest


def _search(arena: Arena, validation: Validation, progress: Progress) -> tuple[dict[str, Any], Trial | None]:
    """The result, and the chosen edit if there is one."""
    options = arena.options
    candidates = arena.candidates()
    base = base_trial(validation.base(len(arena.parts), progress))
    if options.budget.fast is None:
        found = exhaustive(validation, candidates, options.budget, progress)
    else:
        found = fast(validation, candidates, options.budget, arena.model, arena.weights, progress)
    by_edit = {(one.edit, one.blocks): one for one in candidates}

    def perplexity(one: Trial) -> float:
        progress("perplexity", 0, 1)
        return arena.perplexity([by_edit[one.edit, one.blocks]] if one.edit else [])

    measure = perplexity if options.text is not None else None
    whole = [one for one in found.trials if one.rows == base.rows]
    best, measured = choose(base, whole, options.rule, options.max_ppl_rise, measure)
    if measure is not None:
        base = replace(base, perplexity=measure(base))
        if best.edit and best.perplexity is None:
            best = replace(best, perplexity=measure(best))
            measured = [*measured, best]
        best = best if best.edit else base
    shown = best if best.edit else next(iter(by_accuracy(whole)), None)
    tested = None if shown is None else test_edits(arena, [by_edit[shown.edit, shown.blocks]], progress)
    known = {(one.edit, one.blocks): one for one in measured}
    trials = [known.get((one.edit, one.blocks), one) for one in found.trials]
    result = _result(arena, found, base, best, trials, tested)
    return result, best if best.edit else None


def test_edits(arena: Arena, candidates: Sequence[Candidate], progress: Progress) -> dict[str, Any]:
    """The model as it is, with these edits, and two controls of the same size, on rows that chose nothing."""
    task = EditedTask(arena.plan, arena.test, arena.model, arena.found, arena.options.memory)
    try:
        base = task.base(progress, {min(one.matrix.layer for one in candidates)})
        modes = ("top", "magnitude", "random")
        variants = [arena.weights.edits(candidates, mode, arena.options.seed) for mode in modes]
        edit, magnitude, random = task.edited(variants, progress)
    finally:
        task.close()
    decision = decide(base, edit, tolerance=parse_tolerance("0"))
    rows = {"base": base, "edit": edit, "magnitude": magnitude, "random": random}
    found: dict[str, Any] = {
        "edits": [one.edit for one in candidates],
        "rows": len(base.records),
        "metric": base.metric,
        "floors": dict(base.floors),
        **{name: _figures(score) for name, score in rows.items()},
        "difference": decision.difference,
        "interval": list(decision.interval),
        "confidence": decision.confidence,
        "p_flips": decision.p_flips,
        "lost": decision.lost,
        "gained": decision.gained,
    }
    if arena.options.by is not None:
        found["by"] = {
            "key": arena.options.by,
            **{name: breakdown(score, arena.test.rows, arena.options.by) for name, score in rows.items()},
        }
    return found


def _figures(score: TaskScore) -> dict[str, float]:
    names = (score.metric, "log_loss", "consistency")
    return {"value": score.value, **{name: score.metrics[name] for name in names if name in score.metrics}}


def _result(
    arena: Arena,
    found: Found,
    base: Trial,
    best: Trial,
    trials: Sequence[Trial],
    tested: dict[str, Any] | None,
) -> dict[str, Any]:
    candidates = arena.candidates()
    whole = [one for one in trials if one.rows == base.rows]
    return {
        "schema_version": 1,
        "kind": "laser-search",
        "model": {"name": arena.checkpoint.name, "hash": lineage.base_hash(arena.checkpoint)},
        "task": {
            "name": arena.task.name,
            "sha256": arena.task.digest,
            "kind": arena.task.kind,
            "metric": headline(arena.task, arena.plan.options),
            "rows": len(arena.task.rows),
            "validation_rows": len(arena.choosing),
            "test_rows": len(arena.test.rows),
        },
        "layers": len(arena.found.blocks),
        "settings": arena.options.to_dict(),
        "candidates": len(candidates),
        "evaluations": len(whole) + 1,
        "matrices": len(arena.matrices),
        "left_out": found.left_out,
        "base": base.to_dict(),
        "trials": [one.to_dict() for one in trials],
        "predicted": dict(found.predicted),
        "pareto": [one.to_dict() for one in pareto([base, *whole])],
        "chosen": best.to_dict(),
        "base_wins": not best.edit,
        "test": tested,
    }


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    return {"search": {key: result[key] for key in ("task", "base", "chosen", "base_wins", "test")}}


def fingerprint(arena: Arena, more: object = None) -> str:
    """sha256 of all that a search on this arena depends on."""
    options = arena.plan.options
    facts = {
        "base": lineage.base_hash(arena.checkpoint),
        "task": [arena.task.digest, arena.test.digest],
        "text": None if arena.options.text is None else lineage.file_digest(arena.options.text),
        "options": arena.options.to_dict(),
        "evaluation": {key: str(value) for key, value in vars(options).items()},
        "versions": lineage.versions(),
        "threads": torch.get_num_threads(),
        "more": more,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def workspace(out: Path | None, key: str, resume: bool, force: bool) -> Iterator[Path | None]:
    """The directory of unfinished work for `out`, held by this process alone; None without an output."""
    if out is None:
        yield None
        return
    directory = work_directory(out)
    found = directory / RUN
    if found.is_file() and not resume and not force:
        raise InputError(
            f"{directory} holds an unfinished run for {out.name}",
            "continue it with --resume, or start over with --force",
        )
    if found.is_file() and resume and json.loads(found.read_text())["key"] != key:
        raise InputError(
            f"{directory} was begun with other settings, model, task, versions or threads",
            "repeat the command that began it with --resume, or start over with --force",
        )
    if resume and not found.is_file():
        raise InputError(f"there is no unfinished run for {out}", "leave out --resume")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / "lock", timeout=0):
            if not resume:
                for path in directory.iterdir():
                    if path.name != "lock":
                        path.unlink()
            write_json_whole(found, {"key": key})
            yield directory
    except Timeout:
        raise InputError(f"another run is writing {out}", "wait for it, or choose another --out") from None
