"""Whole numbers from the weights alone, module by module; a finished module is a file, not done again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.forms import LowRank
from kanna.methods.quantize.config import UNCALIBRATED
from kanna.methods.quantize.plan import Plan
from kanna.models.matrix import Matrix
from kanna.progress import told
from kanna.quant.grid import Codes
from kanna.quant.rounding import quantised
from kanna.runs.assemble import Factors, New, assemble, factors_of, matrix_weight
from kanna.runs.source import Source
from kanna.runs.step import Job


@dataclass(frozen=True)
class Loss:
    """What quantising cost a matrix.

    Args:
        error: ||W - W'|| over ||W||, Frobenius; 0 for a matrix of zeros.
        outputs: The root of the error of its outputs on the calibration text over the root of their size;
            None without text.
    """

    error: float
    outputs: float | None = None

    @property
    def told(self) -> float:
        """What counts: that of outputs where known, since weights fitted to them move on purpose."""
        return self.error if self.outputs is None else self.outputs


def module_file(number: int) -> str:
    return f"module-{number:04d}.safetensors"


def quantise_modules(job: Job, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """Full parameter name -> tensor of every new module."""
    numbered = list(enumerate(plan.modules))
    for number, module in told(job.progress, "quantize", numbered):
        name = module_file(number)
        if not job.workspace.has(name):
            tensors, losses = _quantised_module(job.source, plan, module, job.inputs.device)
            job.workspace.save(name, tensors, {matrix: [loss.error] for matrix, loss in losses.items()})
        yield from job.workspace.load(name).items()


def losses_of_modules(job: Job, plan: Plan) -> dict[str, Loss]:
    """By matrix name, when all modules are done."""
    return {
        matrix: Loss(*found)
        for number in range(len(plan.modules))
        for matrix, found in job.workspace.note(module_file(number)).items()
    }


def losses_by(losses: Mapping[str, Loss], matrices: Sequence[Matrix]) -> Loss:
    """The mean over some matrices."""
    found = [losses[matrix.name] for matrix in matrices]
    outputs = [loss.outputs for loss in found if loss.outputs is not None]
    mean = sum(loss.error for loss in found) / len(found)
    return Loss(mean, sum(outputs) / len(outputs) if outputs else None)


def _quantised_module(
    source: Source, plan: Plan, path: str, device: torch.device
) -> tuple[Mapping[str, Tensor], dict[str, Loss]]:
    module, parts = source.module(path), plan.parts(path)
    new: dict[str, New] = {}
    losses: dict[str, Loss] = {}
    for matrix in parts:
        if matrix.name not in plan.grids:
            continue
        weight = matrix_weight(module, matrix.view)
        check_numbers(weight, matrix)
        if isinstance(plan.stored[matrix.name], LowRank):
            expand, reduce = factors_of(module, matrix)
            new[matrix.name] = Factors(
                rounded_alone(expand.to(device), plan, matrix), rounded_alone(reduce.to(device), plan, matrix)
            )
        else:
            new[matrix.name] = rounded_alone(weight.to(device), plan, matrix)
        losses[matrix.name] = Loss(relative_error(weight, weight_of(new[matrix.name])))
    piece = assemble(module, parts, new, source.dtype(path))
    assert piece is not None
    return piece.named, losses


def rounded_alone(weight: Tensor, plan: Plan, matrix: Matrix) -> Codes:
    """A weight (m, n) on the grid of a matrix, without data."""
    method = UNCALIBRATED if plan.config.method in ("auto", "gptq") else plan.config.method
    return on_cpu(quantised(weight, plan.grids[matrix.name], method))  # type: ignore[arg-type]


def on_cpu(codes: Codes) -> Codes:
    return Codes(codes.grid, codes.codes.cpu(), codes.scale.cpu(), codes.zero.cpu())


def weight_of(new: New) -> Tensor:
    """The dense matrix (m, n) float32 of what is new."""
    if isinstance(new, Factors):
        return weight_of(new.expand) @ weight_of(new.reduce)
    return new.weight if isinstance(new, Codes) else new.float()


def relative_error(weight: Tensor, other: Tensor) -> float:
    """||W - W'|| over ||W||."""
    size = float(weight.float().norm())
    return float((weight.float() - other).norm()) / size if size else 0.0


def check_numbers(weight: Tensor, matrix: Matrix) -> None:
    """Raise InputError for NaN or infinity: a grid cannot hold them."""
    if not bool(torch.isfinite(weight).all()):
        raise InputError(
            f"{matrix.name} holds NaN or infinity", "fetch the model again, or --skip the matrix"
        )
