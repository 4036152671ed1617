"""The step `laser`: what the runner asks of it, and what it leaves to be restored from."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.writer import write_json, write_tensors
from kanna.methods.laser.apply import Spectrum, shapes, tensors
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.plan import Plan, make_plan, modules_of
from kanna.reporting.blocks import Table
from kanna.runs.source import Source
from kanna.runs.step import Changes, Description, Inputs, Job, Step

# A folder of its own: loaders that take every safetensors file beside config.json must not see it.
ORIGINALS = "kanna-originals"
MANIFEST = "kanna-laser.json"


@dataclass(frozen=True)
class LaserChanges(Changes):
    """Changes, the spectra of matrices that were truncated whole, and the numbers stored before."""

    spectra: list[Spectrum] = field(default_factory=list)
    parameters: int = 0


class LaserStep(Step[Plan]):
    """Dense matrices stay dense or become factors; of factors the first components stay, as factors."""

    accepts = ("low_rank", "pivot", "rows", "dense")
    needs_finite = False

    def plan(self, source: Source, config: LaserConfig, inputs: Inputs) -> Plan:
        return make_plan(source, config)

    def apply(self, plan: Plan, job: Job) -> LaserChanges:
        source, spectra = job.source, list[Spectrum]()

        def note(spectrum: Spectrum) -> None:
            spectra.append(spectrum)
            job.progress("reduce", len(spectra), len(plan.reductions))

        def changed() -> Iterator[tuple[str, Tensor]]:
            return tensors(source, plan, job.inputs.device, note)

        def finish(directory: Path) -> None:
            if plan.config.keep_originals:
                _keep_originals(directory / ORIGINALS, source, _changed(source, plan))
            write_json(directory / MANIFEST, _manifest(source, plan, spectra))

        kept = _changed(source, plan) if plan.config.keep_originals else []
        return LaserChanges(
            forms=plan.forms(),
            shapes=shapes(source, plan),
            tensors=changed,
            finish=finish,
            extra_bytes=sum(source.checkpoint.tensors[name].bytes for name in kept),
            spectra=spectra,
            parameters=sum(math.prod(source.checkpoint.shape(name)) for name in source.checkpoint.tensors),
        )

    def describe(self, plan: Plan, changes: Changes) -> Description:
        assert isinstance(changes, LaserChanges)
        saved = sum(reduction.stored - reduction.parameters_after for reduction in plan.reductions)
        figures = {
            "parameters_before": changes.parameters,
            "parameters_after": changes.parameters - saved,
            "matrices_changed": len(plan.reductions),
            "modules_factored": sum(reduction.factored for reduction in plan.reductions),
        }
        edits = plan.tables()[0]
        return Description(
            summary=f"Rank reductions (LASER, mode {plan.config.mode}) of {len(plan.reductions)} matrices of "
            "{base}.",
            figures=figures,
            tables=(Table("Edits", edits.columns, edits.rows),),
            console=(edits,),
            tags=("laser",),
            details={"spectra": [spectrum.to_dict() for spectrum in changes.spectra]},
        )


def _changed(source: Source, plan: Plan) -> list[str]:
    """Names in the files of the tensors that will not be there any more, or hold other numbers."""
    rewritten = plan.rewritten()
    names: dict[str, None] = {}
    for module in modules_of(plan.reductions):
        held = source.tensors_of(module) if module in rewritten else [plan.reductions_of(module)[0].tensor]
        names |= dict.fromkeys(held)
    return list(names)


def _keep_originals(directory: Path, source: Source, names: list[str]) -> None:
    """The tensors that change, as they were; one in memory at a time."""
    directory.mkdir()
    checkpoint = source.checkpoint
    specs = [TensorSpec(name, checkpoint.dtype(name), checkpoint.shape(name)) for name in names]
    write_tensors(directory, specs, checkpoint.stream(names))


def _manifest(source: Source, plan: Plan, spectra: list[Spectrum]) -> Mapping[str, Any]:
    """What was done to which matrix, in full."""
    by_name = {spectrum.matrix: spectrum.to_dict() for spectrum in spectra}
    return {
        "format_version": 1,
        "made_from": {"name": source.name, "hash": source.hash},
        "mode": plan.config.mode,
        "decomposition": "exact, in float64",
        "edits": [
            {**reduction.to_dict(), "spectrum": by_name.get(reduction.matrix.name)}
            for reduction in plan.reductions
        ],
        "originals": ORIGINALS if plan.config.keep_originals else None,
        "rewritten": [source.prefix(module) for module in plan.rewritten()],
        "quantization_config": source.checkpoint.config.get("quantization_config"),
    }


STEP = LaserStep()
