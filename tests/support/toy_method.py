"""A whole method in one file: it multiplies the chosen matrices by a number. See test_toy_method.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kanna.models.matrix import Matrix
from kanna.models.selection import select
from kanna.models.views import write
from kanna.runs.method import Method
from kanna.runs.step import Changes, Description, Inputs, Job, Plan, Step

METHOD = Method("scale", "Multiply matrices.", "toy_method:ScaleConfig", "toy_method:STEP")


class ScaleConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    by: float = Field(default=0.5, gt=0, description="The number.", json_schema_extra={"group": "How"})
    select: str = Field(default="mlp", description="Which matrices.")


@dataclass(frozen=True, kw_only=True)
class ScalePlan(Plan):
    matrices: tuple[Matrix, ...]


class ScaleStep(Step[ScalePlan]):
    def plan(self, source: Any, config: ScaleConfig, inputs: Inputs) -> ScalePlan:
        return ScalePlan(config=config, matrices=select(source.inventory.matrices, config.select))

    def apply(self, plan: ScalePlan, job: Job) -> Changes:
        stored = {matrix.tensor: job.source.tensor_of(matrix) for matrix in plan.matrices}
        shapes = {
            name: (job.source.checkpoint.dtype(tensor), job.source.checkpoint.shape(tensor))
            for name, tensor in stored.items()
        }

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in stored.items():
                piece = f"{name}.safetensors"
                if not job.workspace.has(piece):
                    value = job.source.checkpoint.tensor(tensor)
                    for matrix in (matrix for matrix in plan.matrices if matrix.tensor == name):
                        value = write(value, matrix.view, job.source.weight(matrix) * plan.config.by)
                    job.workspace.save(piece, {"value": value})
                yield name, job.workspace.load(piece)["value"]

        return Changes(shapes=shapes, tensors=tensors)

    def describe(self, plan: ScalePlan, changes: Changes) -> Description:
        return Description("Matrices of {base} multiplied.", {"matrices_scaled": len(plan.matrices)})


STEP = ScaleStep()
