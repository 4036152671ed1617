"""Run the step `laser`: reduce the matrices that edits name, write the model, reload and judge it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from kanna.checkpoint import card, lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.writer import output_directory, write_json, write_tensors
from kanna.errors import InputError
from kanna.forms import Form
from kanna.methods.laser.apply import Spectrum, factored_modules, piece_shapes, pieces
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.plan import Plan, make_plan
from kanna.methods.lowrank.run import refuse_existing
from kanna.models.device import device_of
from kanna.runs.criteria import Criteria, prepare_for
from kanna.runs.judge import comparison_rows, judge
from kanna.runs.output import plan_layout, write_model
from kanna.runs.probe import Verdict, verify_finite
from kanna.runs.record import Stages, run_record
from kanna.tasks.evaluate import EvalOptions
from kanna.tasks.verdict.comparison import Comparison

Progress = Callable[[str, int, int], None]
# A folder of its own: loaders that take every safetensors file beside config.json must not see it.
ORIGINALS = "kanna-originals"
MANIFEST = "kanna-laser.json"


@dataclass(frozen=True)
class LaserResult:
    """What an application of edits did.

    Args:
        out: The directory; None for a dry run.
        plan: What was to be done.
        spectra: Of each matrix that was truncated whole.
        figures: Sizes before and after.
        verdict: Whether what was written can be loaded and computes; None for a dry run.
        comparison: With the base on the user's tasks; None where none were given.
        run: Times and memory, also in `OUT.run.json`.
    """

    out: Path | None
    plan: Plan
    spectra: tuple[Spectrum, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    comparison: Comparison | None = None
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        sound = self.verdict is None or self.verdict.passed
        return sound and (self.comparison is None or self.comparison.passed)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "laser",
            "out": None if self.out is None else str(self.out),
            "plan": self.plan.to_dict(),
            "spectra": [one.to_dict() for one in self.spectra],
            "figures": self.figures,
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "run": self.run,
        }


@dataclass(frozen=True)
class Origin:
    """How edits were found, for the lineage and for what is built on them.

    Args:
        method: Name of the step in the lineage.
        facts: What the lineage keeps beside the configuration.
        files: Further files of the directory: name -> JSON.
        data_hash: sha256 of the task the edits were chosen on.
    """

    method: str = "laser"
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    data_hash: str | None = None


def laser_config(settings: dict[str, Any]) -> LaserConfig:
    """Settings as given by the user; None values are taken as not given.

    Raises:
        InputError: A value out of range, an unknown key or an edit that cannot be read; it is named.
    """
    try:
        return LaserConfig(**{key: value for key, value in settings.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        said = str(first["msg"]).removeprefix("Value error, ")
        raise InputError(f"{where}: {said}", "see kanna laser apply --help") from error


def laser_apply(
    model: str | Path,
    out: str | Path | None,
    config: LaserConfig,
    *,
    force: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    cache: Path | None = None,
    criteria: Criteria | None = None,
    options: EvalOptions | None = None,
    origin: Origin | None = None,
    announce: Callable[[Plan], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> LaserResult:
    """Reduce matrices of a model and write the result; memory is a few of the largest matrices.

    Without edits, or with rank full, every tensor is bit-identical and nothing is decomposed.

    Args:
        model: Directory, or hub id in the local cache.
        out: Where the result goes; may be None for a dry run.
        criteria: Tasks on which the result is compared with `model`; the verdict is recorded.
        origin: How the edits were found; None for edits given by hand.

    Raises:
        InputError: Whatever is wrong with the request, before anything is written.
    """
    started = time.perf_counter()
    where = device_of(device)
    checkpoint = Checkpoint.open(model)
    lineage.verify(checkpoint.directory)
    if criteria is not None:
        prepare_for(checkpoint.directory, criteria, options or EvalOptions())
    plan = make_plan(checkpoint, config)
    if dry_run:
        return LaserResult(None, plan)
    if out is None:
        raise InputError("no output directory was given", "add --out DIR")
    target = Path(out).expanduser().absolute()
    refuse_existing(target, force)
    announce(plan)
    stages = Stages(progress)
    job = _Job(checkpoint, lineage.base_hash(checkpoint), plan, target, where, cache, origin or Origin())
    asked = None if criteria is None else (criteria, options or EvalOptions(device=device))
    result = _write(job, asked, force, stages.report)
    run = run_record(started, stages.seconds, device)
    lineage.write_run_record(target, run)
    return LaserResult(target, plan, *result, run)


@dataclass(frozen=True)
class _Job:
    checkpoint: Checkpoint
    base_hash: str
    plan: Plan
    out: Path
    device: torch.device
    cache: Path | None
    origin: Origin


_Written = tuple[tuple[Spectrum, ...], dict[str, Any], Verdict, Comparison | None]


def _write(
    job: _Job, asked: tuple[Criteria, EvalOptions] | None, force: bool, progress: Progress
) -> _Written:
    modules = factored_modules(job.plan)
    forms = {one.module: one.form for one in modules}
    shapes = piece_shapes(job.checkpoint, job.plan, modules)
    layout = plan_layout(job.checkpoint, forms, shapes, job.plan.inventory.base_model_prefix)
    spectra: list[Spectrum] = []

    def note(one: Spectrum) -> None:
        spectra.append(one)
        progress("reduce", len(spectra), len(job.plan.reductions))

    originals = job.plan.config.keep_originals
    needed = layout.bytes
    if originals:
        needed += sum(job.checkpoint.tensors[name].bytes for name in _changed(job))
    with output_directory(job.out, force=force, needed_bytes=needed) as partial:
        changed = pieces(job.checkpoint, job.plan, modules, job.device, note)
        write_model(partial, job.checkpoint, forms, layout, changed)
        if originals:
            _keep_originals(partial / ORIGINALS, job)
        figures = _figures(job, layout.bytes, forms)
        progress("verify", 0, 1)
        verdict = verify_finite(partial, layout.parameters)
        progress("verify", 1, 1)
        compared = None
        if asked is not None:
            source = job.checkpoint.directory
            compared = judge(source, partial, job.out.name, *asked, cache=job.cache, progress=progress)
        _finish(partial, job, spectra, figures, verdict, compared)
    return tuple(spectra), figures, verdict, compared


def _keep_originals(directory: Path, job: _Job) -> None:
    """The tensors that change, as they were; one in memory at a time."""
    directory.mkdir()
    names, source = _changed(job), job.checkpoint
    specs = [TensorSpec(name, source.dtype(name), source.shape(name)) for name in names]
    write_tensors(directory, specs, source.stream(names))


def _changed(job: _Job) -> list[str]:
    """The stored tensors that change, and the biases that move into factors."""
    names = dict.fromkeys(one.tensor for one in job.plan.reductions)
    biases = [f"{stored_module(one.tensor)}.bias" for one in job.plan.reductions if one.factored]
    return [*names, *(name for name in dict.fromkeys(biases) if name in job.checkpoint.tensors)]


def stored_module(tensor: str) -> str:
    """The module of a stored parameter, as the files name it."""
    return tensor.rpartition(".")[0]


def _figures(job: _Job, size: int, forms: dict[str, Form]) -> dict[str, Any]:
    parameters = sum(math.prod(job.checkpoint.shape(name)) for name in job.checkpoint.tensors)
    saved = sum(one.matrix.parameters - one.parameters_after for one in job.plan.reductions)
    return {
        "model_bytes_before": job.checkpoint.bytes,
        "model_bytes_after": size,
        "keep_model_bytes": size / job.checkpoint.bytes,
        "parameters_before": parameters,
        "parameters_after": parameters - saved,
        "matrices_changed": len(job.plan.reductions),
        "modules_factored": len(forms),
    }


def _finish(
    partial: Path,
    job: _Job,
    spectra: list[Spectrum],
    figures: dict[str, Any],
    verdict: Verdict,
    compared: Comparison | None,
) -> None:
    """Card, manifest and lineage."""
    card.write(partial, _card(job, figures, compared))
    write_json(partial / MANIFEST, _manifest(job, spectra))
    for name, data in job.origin.files.items():
        write_json(partial / name, data)
    judged = {} if compared is None else {"comparison": compared.summary()}
    step = lineage.Step(
        method=job.origin.method,
        config=job.plan.config.model_dump(mode="json"),
        versions=lineage.versions(),
        seed=job.plan.config.seed,
        threads=torch.get_num_threads(),
        data_hash=job.origin.data_hash,
        scores={
            **figures,
            **job.origin.facts,
            **judged,
            "verdict": verdict.to_dict(),
            "evaluated": compared is not None,
        },
    )
    known = lineage.read(job.checkpoint.directory)
    made_from = lineage.Base(name=job.checkpoint.name, hash=job.base_hash)
    base = made_from if known is None else known.base
    steps = (step,) if known is None else (*known.steps, step)
    lineage.write(partial, base, steps)


def _manifest(job: _Job, spectra: list[Spectrum]) -> dict[str, Any]:
    """What was done to which matrix, in full."""
    by_name = {one.matrix: one.to_dict() for one in spectra}
    return {
        "format_version": 1,
        "made_from": {"name": job.checkpoint.name, "hash": job.base_hash},
        "mode": job.plan.config.mode,
        "decomposition": "exact, in float64",
        "edits": [{**one.to_dict(), "spectrum": by_name.get(one.matrix.name)} for one in job.plan.reductions],
        "originals": ORIGINALS if job.plan.config.keep_originals else None,
    }


def _card(job: _Job, figures: dict[str, Any], compared: Comparison | None) -> card.Card:
    rows = [
        (one.matrix.name, f"{one.matrix.out_features} x {one.matrix.in_features}", one.said, one.rank,
         "factors" if one.factored else "dense")
        for one in job.plan.reductions
    ]  # fmt: skip
    judged = "Not evaluated on a task." if compared is None else f"Verdict: {compared.status}."
    size = (
        ("bytes before", f"{figures['model_bytes_before']:,}"),
        ("bytes after", f"{figures['model_bytes_after']:,}"),
    )
    tables = [
        card.Table("Edits", ("matrix", "shape", "asked", "rank", "stored"), rows),
        card.Table("Size", ("what", "value"), size),
    ]
    if compared is not None:
        tables.append(card.Table("On its tasks", *comparison_rows(compared)))
    return card.Card(
        title=job.out.name,
        base_model=job.checkpoint.name,
        summary=f"Rank reductions (LASER, mode {job.plan.config.mode}) of {len(rows)} matrices of "
        f"{job.checkpoint.name}. {judged}",
        tables=tables,
        tags=("laser",),
        needs_kanna=bool(figures["modules_factored"]),
        source=job.checkpoint.directory,
    )
