"""The step `export`: every form multiplied out, under the tensor names of the dense model.

The dtype of the factors is kept (products in float32 or better); all else is copied as it is. Memory: the
tensors of one layer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.checkpoint.declared import Declared
from kanna.errors import InputError
from kanna.forms import Dense, Form, dense_weight
from kanna.methods.export.config import ExportConfig
from kanna.progress import told
from kanna.runs.assemble import bias_of
from kanna.runs.source import Source
from kanna.runs.step import Changes, Description, Inputs, Job, Step
from kanna.runs.step import Plan as AnyPlan


@dataclass(frozen=True, kw_only=True)
class Plan(AnyPlan):
    """Which modules are multiplied out.

    Args:
        layers: Module path -> its form and what it replaces.
        scales: Name of the set of scales that is multiplied in; None for none.
    """

    layers: Mapping[str, Declared]
    scales: str | None = None

    def forms(self) -> Mapping[str, Form]:
        return dict.fromkeys(self.layers, Dense())

    def lines(self) -> list[str]:
        given = "" if self.scales is None else f", with the scales {self.scales}"
        return [f"{len(self.layers)} layers are multiplied out{given}"]


class ExportStep(Step[Plan]):
    """Takes any form: each can return the dense weight."""

    accepts = None
    needs_finite = False

    def plan(self, source: Source, config: ExportConfig, inputs: Inputs) -> Plan:
        if not source.forms:
            raise InputError(
                f"{source.name} has no layer compressed by kanna, so there is nothing to multiply out",
                "give a directory that kanna wrote; this model is dense already",
            )
        return Plan(config=config, layers=source.declared, scales=source.opened.scales_name)

    def apply(self, plan: Plan, job: Job) -> Changes:
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for path, layer in plan.layers.items():
            sizes, dtype = layer.geometry, job.source.dtype(path)
            shape = (sizes.n, sizes.m) if sizes.transposed else (sizes.m, sizes.n)
            shapes[f"{path}.weight"] = (dtype, shape)
            if sizes.bias:
                shapes[f"{path}.bias"] = (dtype, (sizes.m,))

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for path, layer in told(job.progress, "export", tuple(plan.layers.items())):
                yield from _multiplied_out(job.source, path, layer)

        return Changes(plan.forms(), shapes, tensors)

    def describe(self, plan: Plan, changes: Changes) -> Description:
        return Description(
            summary="The layers that kanna had compressed, multiplied out again: any tool reads this.",
            figures={} if plan.scales is None else {"scales": plan.scales},
            lines=(f"{len(plan.layers)} layers multiplied out",),
            details={"format": "dense"},
        )


def _multiplied_out(source: Source, path: str, layer: Declared) -> Iterator[tuple[str, Tensor]]:
    module = source.module(path)
    weight = dense_weight(module)
    yield f"{path}.weight", weight.T.contiguous() if layer.geometry.transposed else weight
    bias = bias_of(module)
    if bias is not None:
        yield f"{path}.bias", bias


STEP = ExportStep()
