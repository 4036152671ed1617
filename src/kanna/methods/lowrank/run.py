"""Run the step `lowrank` from a model directory to a verified output directory."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from kanna.calibration.windows import Windows, packed, padded, random_windows
from kanna.checkpoint import card, lineage
from kanna.checkpoint.reader import Checkpoint, check_finite
from kanna.checkpoint.writer import output_directory
from kanna.errors import InputError
from kanna.linalg.allocation import Ranks
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.execute import Outcome, execute
from kanna.methods.lowrank.gradients import backward_memory, fits_in_memory
from kanna.methods.lowrank.plan import Plan, check_memory, make_plan
from kanna.methods.lowrank.replace import probe_file
from kanna.models.device import device_of
from kanna.runs.criteria import Criteria, prepare_for
from kanna.runs.judge import comparison_rows, judge
from kanna.runs.output import Layout, plan_layout, write_model
from kanna.runs.places import cache_directory
from kanna.runs.probe import Verdict, verify_output
from kanna.runs.record import Stages, run_record
from kanna.runs.unfinished import FREE_SPACE, unfinished_work
from kanna.runs.workspace import Workspace
from kanna.tasks.data.rows import read_rows
from kanna.tasks.evaluate import EvalOptions
from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer, predicts_next_token
from kanna.tasks.verdict.comparison import Comparison

Progress = Callable[[str, int, int], None]
_PROBE_LENGTH = 64


@dataclass(frozen=True)
class LowRankResult:
    """What a run did.

    Args:
        out: The directory; None for a dry run.
        plan: What was to be done.
        verdict: Whether what was written is what was computed; None for a dry run.
        figures: Sizes before and after, ranks, share kept.
        run: Times and memory, also in `OUT.run.json`.
        comparison: With the base on the user's tasks; None where none were given.
    """

    out: Path | None
    plan: Plan
    verdict: Verdict | None
    figures: dict[str, Any]
    run: dict[str, Any]
    comparison: Comparison | None = None

    @property
    def passed(self) -> bool:
        sound = self.verdict is None or self.verdict.passed
        return sound and (self.comparison is None or self.comparison.passed)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "out": None if self.out is None else str(self.out),
            "plan": self.plan.to_dict(),
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "figures": self.figures,
            "run": self.run,
        }


def parse_config(settings: dict[str, Any]) -> LowRankConfig:
    """Settings as given by the user; None values are taken as not given.

    Raises:
        InputError: A value out of range, or an unknown key; it is named.
    """
    try:
        return LowRankConfig(**{key: value for key, value in settings.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        given = first.get("input")
        came = "" if isinstance(given, dict) else f", found {given!r}"
        raise InputError(f"{where}: {first['msg']}{came}", "see kanna lowrank --help") from error


def lowrank(
    model: str | Path,
    out: str | Path | None,
    config: LowRankConfig,
    *,
    calibration: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    announce: Callable[[Plan], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> LowRankResult:
    """Replace weight matrices of a model by low-rank factors and write the smaller model.

    Args:
        model: Directory, or hub id in the local cache.
        out: Where the result goes; may be None for a dry run.
        calibration: `.jsonl` rows or plain text; needed by every method but `plain`.
        force: Replace `out`, and start over where an unfinished run is in the way.
        resume: Continue an unfinished run for `out`.
        dry_run: Only say what would be done.
        cache: Where statistics are kept between runs; kanna's cache directory by default.
        criteria: Tasks on which the result is compared with `model`, and what may be lost on them; the
            verdict is recorded in kanna.json.
        options: How to evaluate on them.
        announce: Called with the plan before long work begins.
        progress: Called with (stage, done, total).

    Raises:
        InputError: Whatever is wrong with the request, before anything is written.
    """
    started = time.perf_counter()
    device_of(device)
    checkpoint = Checkpoint.open(model)
    lineage.verify(checkpoint.directory)
    windows = _windows(checkpoint, config, calibration)
    if criteria is not None:
        prepare_for(checkpoint.directory, criteria, options or EvalOptions())
    plan = _plan(checkpoint, config, windows)
    if dry_run:
        return LowRankResult(None, plan, None, _plan_figures(checkpoint, plan), {})
    if out is None:
        raise InputError("no output directory was given", "add --out DIR")
    target = Path(out).expanduser().absolute()
    calibrated = windows if windows is not None else _random_probe(checkpoint, config)
    replace = force or (resume and _in_place_already(target, plan, calibrated))
    refuse_existing(target, replace)
    check_memory(plan)
    _check_space(target, plan)
    announce(plan)
    _check_weights(checkpoint)
    job = _Job(checkpoint, plan, calibrated, lineage.base_hash(checkpoint), target, device, cache)
    stage = Stages(progress)
    with unfinished_work(target, _fingerprint(job), resume, force) as directory:
        workspace = Workspace(directory)
        asked = None if criteria is None else (criteria, options or EvalOptions(device=device))
        figures, verdict, compared = _compress(job, workspace, asked, replace, stage.report)
        shutil.rmtree(workspace.directory)
    run = run_record(started, stage.seconds, device)
    lineage.write_run_record(target, run)
    return LowRankResult(target, plan, verdict, figures, run, compared)


@dataclass(frozen=True)
class _Job:
    """What is to be done to what, decided and checked.

    Args:
        windows: Calibration, or random tokens to verify with where there is none.
        cache: Where statistics and scores are kept; None for kanna's cache directory.
    """

    checkpoint: Checkpoint
    plan: Plan
    windows: Windows
    base_hash: str
    out: Path
    device: str
    cache: Path | None


def _compress(
    job: _Job,
    workspace: Workspace,
    asked: tuple[Criteria, EvalOptions] | None,
    replace: bool,
    progress: Progress,
) -> tuple[dict[str, Any], Verdict, Comparison | None]:
    """Compute the forms, write the directory, reload, check and judge it; after that it gets its name."""
    outcome = _outcome(job, workspace, progress)
    layout = plan_layout(
        job.checkpoint, outcome.forms, outcome.shapes(), job.plan.inventory.base_model_prefix
    )
    figures = _figures(job, outcome, layout)
    with output_directory(job.out, force=replace, needed_bytes=layout.bytes) as partial:
        write_model(partial, job.checkpoint, outcome.forms, layout, outcome.pieces())
        progress("verify", 0, 1)
        probe, recorded = job.windows.first(1), _recorded(outcome)
        verdict = verify_output(partial, job.plan.inventory, probe, recorded, layout.parameters)
        progress("verify", 1, 1)
        compared = None
        if asked is not None:
            source = job.checkpoint.directory
            compared = judge(source, partial, job.out.name, *asked, cache=job.cache, progress=progress)
        _finish(partial, job, figures, verdict, compared)
    return figures, verdict, compared


def _plan(checkpoint: Checkpoint, config: LowRankConfig, windows: Windows | None) -> Plan:
    if windows is None:
        return make_plan(checkpoint, config, 0, None, has_text=False)
    backward = backward_memory(checkpoint, windows, config.batch)
    fitting = backward if fits_in_memory(backward) else None
    return make_plan(checkpoint, config, windows.tokens, fitting, has_text=True)


def _windows(checkpoint: Checkpoint, config: LowRankConfig, path: str | Path | None) -> Windows | None:
    if path is None or config.keep == 1.0:
        return None
    rows = read_rows(path)
    tokenizer = load_tokenizer(checkpoint.directory)
    length = context_length(checkpoint.config, tokenizer, config.context)
    questions = any(row.prompt for row in rows)
    make = packed if predicts_next_token(checkpoint.config) and not questions else padded
    return make(rows, tokenizer, config.tokens, length, config.seed)


def _random_probe(checkpoint: Checkpoint, config: LowRankConfig) -> Windows:
    vocabulary = int(checkpoint.config.get("vocab_size", 2))
    length = min(_PROBE_LENGTH, context_length(checkpoint.config, None, None))
    return random_windows(vocabulary, length, config.seed)


def _outcome(job: _Job, workspace: Workspace, progress: Progress) -> Outcome:
    if job.plan.nothing_to_do:
        ranks: Ranks = {matrix.name: None for matrix in job.plan.selected}
        return Outcome({}, ranks, 1.0, workspace, 0)
    shared = (job.cache or cache_directory()) / "statistics"
    probe, device = job.windows.first(1), torch.device(job.device)
    return execute(
        job.checkpoint, job.plan, job.windows, probe, job.base_hash, shared, workspace, device, progress
    )


def _recorded(outcome: Outcome) -> dict[int, torch.Tensor]:
    names = {layer: probe_file(layer) for layer in range(outcome.blocks)}
    return {layer: outcome.workspace.load(name)["probe"] for layer, name in names.items()}


def refuse_existing(out: Path, force: bool) -> None:
    """Raise InputError where an output is in the way."""
    if os.path.lexists(out) and not force:
        raise InputError(f"{out} exists already", "choose another directory, or replace it with --force")


def _in_place_already(out: Path, plan: Plan, windows: Windows) -> bool:
    """Whether the run to be resumed was killed after `out` had its name, while cleaning up."""
    found = lineage.read(out) if out.is_dir() else None
    if found is None or not found.steps:
        return False
    same_config = found.steps[-1].config == plan.config.model_dump(mode="json")
    return same_config and found.steps[-1].data_hash == windows.digest


def _check_weights(checkpoint: Checkpoint) -> None:
    """Raise InputError naming a tensor that holds NaN or infinity."""
    for name, tensor in checkpoint.stream():
        check_finite(tensor, name)


def _check_space(out: Path, plan: Plan) -> None:
    """The files of work fit beside the output; the output itself is checked before it is written."""
    place = next(parent for parent in out.parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if plan.work_bytes > free and not plan.nothing_to_do:
        raise InputError(
            f"about {plan.work_bytes / 1e9:.2f} GB of space are needed for work in {place}, and "
            f"{free / 1e9:.2f} GB are free",
            FREE_SPACE,
        )


def _fingerprint(job: _Job) -> str:
    facts = {
        "base": job.base_hash,
        "config": job.plan.config.model_dump(mode="json"),
        "windows": job.windows.digest,
        "versions": lineage.versions(),
        "threads": torch.get_num_threads(),
        "device": job.device,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _plan_figures(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    return {"model_bytes": checkpoint.bytes, "selected_parameters": plan.dense_parameters}


def _figures(job: _Job, outcome: Outcome, layout: Layout) -> dict[str, Any]:
    replaced = {name: rank for name, rank in outcome.ranks.items() if rank is not None}
    return {
        "keep_selected": outcome.keep,
        "keep_model_bytes": layout.bytes / job.checkpoint.bytes,
        "model_bytes_before": job.checkpoint.bytes,
        "model_bytes_after": layout.bytes,
        "matrices_selected": len(job.plan.selected),
        "matrices_replaced": len(replaced),
        "ranks": replaced,
    }


def _finish(
    partial: Path, job: _Job, figures: dict[str, Any], verdict: Verdict, compared: Comparison | None
) -> None:
    """Card and lineage."""
    card.write(partial, _card(job, figures, compared))
    judged = {} if compared is None else {"comparison": compared.summary()}
    step = lineage.Step(
        method="lowrank",
        config=job.plan.config.model_dump(mode="json"),
        versions=lineage.versions(),
        seed=job.plan.config.seed,
        threads=torch.get_num_threads(),
        data_hash=job.windows.digest,
        scores={**figures, **judged, "verdict": verdict.to_dict(), "evaluated": compared is not None},
    )
    lineage.write(partial, lineage.Base(name=job.checkpoint.name, hash=job.base_hash), (step,))


def _card(job: _Job, figures: dict[str, Any], compared: Comparison | None) -> card.Card:
    config = job.plan.config
    rows = (
        ("parameters of the selected matrices kept", f"{figures['keep_selected']:.4f}"),
        ("bytes of the whole model kept", f"{figures['keep_model_bytes']:.4f}"),
        ("bytes before", f"{figures['model_bytes_before']:,}"),
        ("bytes after", f"{figures['model_bytes_after']:,}"),
        ("matrices replaced", f"{figures['matrices_replaced']} of {figures['matrices_selected']}"),
    )
    summary = (
        f"Weight matrices of {job.checkpoint.name} replaced by low-rank factors (method {config.method}, "
        f"{config.allocation} ranks, {config.storage} storage). "
        + ("Not evaluated on a task." if compared is None else f"Verdict: {compared.status}.")
    )
    tables = [card.Table("Size", ("what", "value"), rows)]
    if compared is not None:
        tables.append(card.Table("On its tasks", *comparison_rows(compared)))
    return card.Card(
        title=job.out.name,
        base_model=job.checkpoint.name,
        summary=summary,
        tables=tables,
        tags=("low-rank",),
        needs_kanna=bool(figures["ranks"]),
        source=job.checkpoint.directory,
    )
