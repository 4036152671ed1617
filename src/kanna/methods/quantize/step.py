"""The step `quantize`: what the runner asks of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kanna.calibration.text import windows_of
from kanna.errors import InputError
from kanna.methods.quantize.calibrated import (
    losses_of_blocks,
    quantise_blocks,
    tensors_of_blocks,
)
from kanna.methods.quantize.config import QuantizeConfig
from kanna.methods.quantize.execute import Loss, losses_by, losses_of_modules, quantise_modules
from kanna.methods.quantize.plan import Plan, make_plan
from kanna.models.matrix import Matrix
from kanna.reporting.blocks import MEASURED, Table
from kanna.reporting.wording import percent, size
from kanna.runs.assemble import whole_shape
from kanna.runs.blocks import probe_file
from kanna.runs.source import Source
from kanna.runs.step import Changes, Description, Inputs, Job, Recorded, Shapes, Step


@dataclass(frozen=True)
class QuantizeChanges(Changes):
    """Changes, and what they cost each matrix; known once the tensors have been asked for."""

    losses: dict[str, Loss] = field(default_factory=dict)


class QuantizeStep(Step[Plan]):
    """Dense matrices, and the factors of low-rank ones."""

    accepts = ("low_rank", "rows", "dense")
    instead = (
        "quantise the model before, or write dense weights first: kanna export DIR --format dense --out D2"
    )

    def plan(self, source: Source, config: QuantizeConfig, inputs: Inputs) -> Plan:
        if inputs.calibration is None or config.method not in ("auto", "gptq"):
            return make_plan(source, config, None, inputs)
        if source.inventory.has_decoder_apart:
            raise InputError(
                f"{source.inventory.architecture} has two stacks, which gptq does not take",
                "leave out --calibration: minmax and mse need none",
            )
        reading = inputs.chat, inputs.joiner
        text = inputs.calibration, config.tokens, config.context, config.seed, *reading
        return make_plan(source, config, windows_of(source.checkpoint, *text), inputs)

    def apply(self, plan: Plan, job: Job) -> QuantizeChanges:
        shapes = _shapes(plan, job.source)
        if plan.windows is None:
            losses: dict[str, Loss] = {}

            def tensors() -> Iterator[tuple[str, Tensor]]:
                yield from quantise_modules(job, plan)
                losses.update(losses_of_modules(job, plan))

            return QuantizeChanges(plan.forms(), shapes, tensors, losses=losses)
        visits = quantise_blocks(job, plan)
        states = {visit: job.workspace.load(probe_file(visit))["probe"] for visit in range(visits)}
        assert plan.tried is not None
        unpadded = bool(plan.tried.mixed or plan.tried.irregular)
        first = plan.windows.lone if unpadded else plan.windows.first(1)
        found = losses_of_blocks(job, plan)
        return QuantizeChanges(
            plan.forms(), shapes, lambda: tensors_of_blocks(job, plan), Recorded(first, states), losses=found
        )

    def describe(self, plan: Plan, changes: Changes) -> Description:
        assert isinstance(changes, QuantizeChanges)
        config, losses = plan.config, changes.losses
        worst = max(plan.selected, key=lambda matrix: losses[matrix.name].told)
        of = "weights" if losses[worst.name].outputs is None else "outputs"
        weights = sum(matrix.parameters for matrix in plan.selected)
        roles = _roles(plan, losses)
        figures = {
            "matrices_quantized": len(plan.selected),
            "bytes_selected_before": plan.before,
            "bytes_selected_after": plan.after,
            "bits_a_weight": 8 * plan.after / weights,
            "weight_error": {name: loss.error for name, loss in losses.items()},
            "worst_matrix": worst.name,
            "roles": roles,
        }
        if plan.windows is not None:
            figures["output_error"] = {name: loss.outputs for name, loss in losses.items()}
        bits = f"{figures['bits_a_weight']:.2f}"
        return Description(
            summary=f"Weight matrices of {{base}} turned into whole numbers of {config.bits} bits "
            f"(method {config.method}, {_group_words(config)}).",
            figures=figures,
            rows=(
                ("bits a weight of these matrices, scales counted", bits),
                ("these matrices", f"{size(plan.before)} -> {size(plan.after)}"),
            ),
            console=(_by_role(roles),),
            lines=(
                f"{len(plan.selected)} matrices: {size(plan.before)} -> {size(plan.after)}, {bits} bits each",
                f"the largest error of {of} is that of {worst.name}: {percent(losses[worst.name].told)}",
            ),
            tags=(f"{config.bits}-bit",),
        )


def _group_words(config: QuantizeConfig) -> str:
    return "one group a row" if config.group_size is None else f"groups of {config.group_size}"


def _shapes(plan: Plan, source: Source) -> Shapes:
    """Full parameter name -> dtype and shape of what is new."""
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for path, form in plan.forms().items():
        dtype, names = source.dtype(path), source.tensors_of(path)
        bias = any(name.endswith(".bias") for name in names)
        for suffix, shape in form.tensors(*whole_shape(plan.parts(path)), bias).items():
            shapes[f"{path}.{suffix}"] = (form.dtype_of(suffix, dtype), shape)
    return shapes


def _roles(plan: Plan, losses: Mapping[str, Loss]) -> list[dict[str, Any]]:
    """What rounding cost, by role."""
    roles: dict[str, list[Matrix]] = {}
    for matrix in plan.selected:
        roles.setdefault(matrix.role, []).append(matrix)
    found = []
    for role, matrices in roles.items():
        mean, worst = losses_by(losses, matrices), max(matrices, key=lambda m: losses[m.name].told)
        weights = sum(m.parameters for m in matrices)
        one = {
            "role": role,
            "matrices": len(matrices),
            "bits_a_weight": sum(plan.bits(m) * m.parameters for m in matrices) / weights,
            "weight_error": mean.error,
            "output_error": mean.outputs,
            "worst_matrix": worst.name,
            "worst_error": losses[worst.name].told,
        }
        found.append(one)
    return found


def _by_role(roles: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            one["role"],
            str(one["matrices"]),
            f"{one['bits_a_weight']:.2f}",
            percent(one["weight_error"]),
            "" if one["output_error"] is None else percent(one["output_error"]),
            f"{one['worst_matrix']} {percent(one['worst_error'])}",
        )
        for one in roles
    ]
    columns = ("role", ">matrices", ">bits a weight", ">error of weights", ">of outputs", "the worst")
    return Table("What rounding cost, by role", columns, rows, MEASURED)


STEP = QuantizeStep()
