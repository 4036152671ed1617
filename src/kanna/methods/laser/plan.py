"""What an application of edits is going to do, before any matrix is changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kanna.checkpoint.fits import check_shapes
from kanna.checkpoint.reader import Checkpoint, check_finite, refuse_quantized
from kanna.errors import InputError
from kanna.linalg.reduction import row_blocks
from kanna.linalg.spectra import energy_rank, singular_values
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.edits import Rank, resolve
from kanna.methods.laser.ranks import automatic_rank, rank_of
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix
from kanna.models.names import tensor_name
from kanna.models.skeleton import skeleton
from kanna.models.views import read

# Of the largest matrix in float64: its decomposition, the product, and what is between.
_COPIES = 8


@dataclass(frozen=True)
class Reduction:
    """One matrix and what becomes of it.

    Args:
        matrix: Which.
        tensor: Name of its parameter in the files.
        rank: Components that stay (with mode bottom: that go), of each block of rows.
        full: The largest rank that it could be.
        said: The rank as the user gave it.
        factored: Stored as two factors.
    """

    matrix: Matrix
    tensor: str
    rank: int
    full: int
    said: str
    factored: bool

    @property
    def parameters_after(self) -> int:
        """Numbers stored for the matrix; it had `matrix.parameters`."""
        return self.rank * sum(self.matrix.shape) if self.factored else self.matrix.parameters

    def to_dict(self) -> dict[str, Any]:
        return {
            "matrix": self.matrix.name,
            "tensor": self.tensor,
            "layer": self.matrix.layer,
            "role": self.matrix.role,
            "shape": list(self.matrix.shape),
            "rank": self.rank,
            "full_rank": self.full,
            "asked": self.said,
            "stored": "factors" if self.factored else "dense",
            "parameters_before": self.matrix.parameters,
            "parameters_after": self.parameters_after,
        }


@dataclass(frozen=True)
class Plan:
    """All reductions, in the order of the matrices.

    Args:
        config: As given.
        inventory: Of the whole model.
        reductions: One per matrix that changes.
        memory: Predicted peak bytes beside what Python and torch take.
        notes: What the user should know.
    """

    config: LaserConfig
    inventory: Inventory
    reductions: tuple[Reduction, ...]
    memory: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "reductions": [one.to_dict() for one in self.reductions],
            "predicted_peak_memory_bytes": self.memory,
            "notes": list(self.notes),
        }


def make_plan(checkpoint: Checkpoint, config: LaserConfig) -> Plan:
    """Resolve the edits on a model. Weights are read only for ranks that depend on the spectrum.

    Two edits of one matrix mean the smaller rank; a rank that is full means that nothing is done.

    Raises:
        InputError: A model that is already quantised or compressed, a role or layer that does not exist, a
            rank larger than the matrix has.
    """
    refuse_quantized(checkpoint.config, checkpoint.name)
    meta = skeleton(checkpoint.directory)
    found = inventory(meta)
    check_shapes(checkpoint, meta, {matrix.tensor for matrix in found.refused})
    notes: list[str] = []
    ranks: dict[str, Reduction] = {}
    for matrix, rank in resolve(config.parsed, found.matrices):
        one = _reduction(checkpoint, found, matrix, rank, config, notes)
        known = ranks.get(matrix.name)
        if known is None or one.rank < known.rank:
            ranks[matrix.name] = one
    changed = [ranks[m.name] for m in found.matrices if m.name in ranks and _changes(ranks[m.name], config)]
    largest = max((one.matrix.parameters for one in changed), default=0)
    return Plan(config, found, tuple(changed), _COPIES * 8 * largest, tuple(notes))


def weight_of(checkpoint: Checkpoint, matrix: Matrix, tensor: str) -> Tensor:
    """The matrix (m, n) as stored.

    Raises:
        InputError: It holds NaN or infinity.
    """
    return check_finite(read(checkpoint.tensor(tensor), matrix.view), matrix.name)


def tensor_of(checkpoint: Checkpoint, found: Inventory, matrix: Matrix) -> str:
    """Name of the matrix' parameter in the files.

    Raises:
        InputError: The files lack it.
    """
    name = tensor_name(matrix.tensor, checkpoint.tensors, found.base_model_prefix)
    if name is None:
        raise InputError(
            f"{checkpoint.directory} lacks the tensor {matrix.tensor}, which {found.architecture} needs",
            "fetch the model again",
        )
    return name


def _reduction(
    checkpoint: Checkpoint,
    found: Inventory,
    matrix: Matrix,
    rank: Rank,
    config: LaserConfig,
    notes: list[str],
) -> Reduction:
    tensor = tensor_of(checkpoint, found, matrix)
    shape = (_block_rows(matrix, config.blocks), matrix.in_features)
    number = _number(checkpoint, matrix, tensor, rank, shape)
    keeps_first = config.mode not in ("bottom", "zero", "none")
    if keeps_first and rank.rule == "rho" and number == 0 and float(rank.amount) > 0:
        notes.append(f"{matrix.name}: rho {rank.amount} of rank {min(shape)} is rank 0, all zeros")
    factored = config.factored and 0 < number <= matrix.break_even_rank
    if config.factored and matrix.break_even_rank < number < min(shape):
        limit = matrix.break_even_rank
        notes.append(f"{matrix.name} stays dense: rank {number} is above the break-even rank {limit}")
    return Reduction(matrix, tensor, number, min(shape), str(rank), factored)


def _block_rows(matrix: Matrix, blocks: int) -> int:
    """Rows of the smallest block.

    Raises:
        InputError: More blocks than rows.
    """
    return min(one.stop - one.start for one in row_blocks(matrix.out_features, blocks))


def _number(checkpoint: Checkpoint, matrix: Matrix, tensor: str, rank: Rank, shape: tuple[int, int]) -> int:
    if not rank.needs_spectrum:
        return stated_rank(rank, matrix.name, shape)
    if shape != matrix.shape:
        raise InputError(
            f"the rank {rank} looks at the spectrum of a whole matrix",
            "give rho or k=, or leave out --blocks",
        )
    values = singular_values(weight_of(checkpoint, matrix, tensor))
    if rank.rule == "energy":
        return energy_rank(values, float(rank.amount))
    return automatic_rank(values, *shape, rank.rule)


def stated_rank(rank: Rank, name: str, shape: tuple[int, int]) -> int:
    """The number that rho or k means for a matrix of that shape.

    Raises:
        InputError: A larger rank than the matrix, called `name`, can have.
    """
    if rank.rule == "rho":
        return rank_of(rank.amount, *shape)
    if int(rank.amount) > min(shape):
        raise InputError(
            f"{name} is {shape[0]} x {shape[1]} and has no rank {rank.amount}",
            f"ask for at most {min(shape)}",
        )
    return int(rank.amount)


def _changes(one: Reduction, config: LaserConfig) -> bool:
    """Whether the matrix will differ at all."""
    if config.mode in ("none", "zero"):
        return config.mode == "zero"
    return one.rank != (0 if config.mode == "bottom" else one.full)


def reductions_of(plan: Plan, tensor: str) -> Sequence[Reduction]:
    """Those whose matrices lie in one stored tensor."""
    return [one for one in plan.reductions if one.tensor == tensor]
