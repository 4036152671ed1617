"""What an application of edits is going to do, before any matrix is changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kanna.errors import InputError
from kanna.forms import Dense, Form, LowRank, Pivot
from kanna.linalg.reduction import row_blocks
from kanna.linalg.spectra import energy_rank, singular_values
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.edits import Rank, resolve
from kanna.methods.laser.ranks import automatic_rank, rank_of
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.reporting.blocks import Table
from kanna.runs.assemble import form_with
from kanna.runs.source import Source
from kanna.runs.step import Plan as AnyPlan

# Of the largest matrix in float64: its decomposition, the product, and what is between.
_COPIES = 8


@dataclass(frozen=True)
class Reduction:
    """One matrix and what becomes of it.

    Args:
        matrix: Which.
        tensor: Name of its parameter in the files; of factors their module's sentinel.
        rank: Components that stay (with mode bottom: that go), of each block of rows.
        full: The largest rank that it could be.
        asked: The rank as the user gave it.
        form: How it will be stored.
        stored: Numbers stored for it now.
    """

    matrix: Matrix
    tensor: str
    rank: int
    full: int
    asked: str
    form: Form
    stored: int

    @property
    def factored(self) -> bool:
        """Whether it will be stored as factors."""
        return not isinstance(self.form, Dense)

    @property
    def parameters_after(self) -> int:
        """Numbers stored for the matrix."""
        return self.form.parameters(*self.matrix.shape)

    def to_dict(self) -> dict[str, Any]:
        return {
            "matrix": self.matrix.name,
            "tensor": self.tensor,
            "layer": self.matrix.layer,
            "role": self.matrix.role,
            "shape": list(self.matrix.shape),
            "rank": self.rank,
            "full_rank": self.full,
            "asked": self.asked,
            "stored": "factors" if self.factored else "dense",
            "parameters_before": self.stored,
            "parameters_after": self.parameters_after,
        }


@dataclass(frozen=True, kw_only=True)
class Plan(AnyPlan):
    """All reductions, in the order of the matrices.

    Args:
        config: As given.
        inventory: Of the whole model.
        reductions: One per matrix that changes.
        held: Module path -> its form now, of modules that are not dense.
    """

    config: LaserConfig
    inventory: Inventory
    reductions: tuple[Reduction, ...]
    held: Mapping[str, Form]

    unchanged: ClassVar[str] = "no edits"

    @property
    def changes_nothing(self) -> bool:
        return not self.reductions

    def rewritten(self) -> dict[str, tuple[Matrix, ...]]:
        """Module path -> all its matrices, of modules that are or become something else than dense."""
        modules = dict.fromkeys(
            reduction.matrix.module
            for reduction in self.reductions
            if reduction.factored or reduction.matrix.module in self.held
        )
        return {path: tuple(m for m in self.inventory.matrices if m.module == path) for path in modules}

    def reductions_of(self, module: str) -> list[Reduction]:
        """Those whose matrices lie in one module."""
        return [reduction for reduction in self.reductions if reduction.matrix.module == module]

    def forms(self) -> Mapping[str, Form]:
        new = {reduction.matrix.name: reduction.form for reduction in self.reductions}
        return {path: form_with(self.held.get(path), parts, new) for path, parts in self.rewritten().items()}

    def lines(self) -> list[str]:
        count = len(self.reductions)
        changes = "1 matrix changes" if count == 1 else f"{count} matrices change"
        return [f"{changes}, mode {self.config.mode}"]

    def tables(self) -> list[Table]:
        rows = [
            (
                reduction.matrix.name,
                f"{reduction.matrix.out_features} x {reduction.matrix.in_features}",
                reduction.asked,
                f"{reduction.rank} of {reduction.full}",
                "factors" if reduction.factored else "dense",
            )
            for reduction in self.reductions
        ]
        return [Table("", ("matrix", ">shape", ">asked", ">rank", "stored"), rows)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "reductions": [reduction.to_dict() for reduction in self.reductions],
            "predicted_peak_memory_bytes": self.memory,
            "notes": list(self.notes),
        }


def make_plan(source: Source, config: LaserConfig) -> Plan:
    """Resolve the edits on a model. Weights are read only for ranks that depend on the spectrum.

    Two edits of one matrix mean the smaller rank; a rank that is full means that nothing is done.

    Raises:
        InputError: A role or layer that does not exist, a rank larger than the matrix has, a mode that a
            matrix in factors cannot take.
    """
    notes: list[str] = []
    ranks: dict[str, Reduction] = {}
    matrices = source.inventory.matrices
    for matrix, rank in resolve(config.parsed, matrices):
        reduction = _reduction(source, matrix, rank, config, notes)
        known = ranks.get(matrix.name)
        if known is None or reduction.rank < known.rank:
            ranks[matrix.name] = reduction
    changed = [ranks[m.name] for m in matrices if m.name in ranks and _changes(ranks[m.name], config)]
    largest = max((reduction.matrix.parameters for reduction in changed), default=0)
    return Plan(
        config=config,
        notes=tuple(notes),
        memory=_COPIES * 8 * largest,
        inventory=source.inventory,
        reductions=tuple(changed),
        held=dict(source.forms),
    )


def _reduction(
    source: Source, matrix: Matrix, rank: Rank, config: LaserConfig, notes: list[str]
) -> Reduction:
    held = source.form(matrix)
    block_rows = min(rows.stop - rows.start for rows in row_blocks(matrix.out_features, config.blocks))
    shape = (block_rows, matrix.in_features)
    if not isinstance(held, Dense):
        return _smaller_factors(source, matrix, rank, config, held)
    number = _number(source, matrix, rank, shape)
    keeps_first = config.mode not in ("bottom", "zero", "none")
    if keeps_first and rank.rule == "rho" and number == 0 and float(rank.amount) > 0:
        notes.append(f"{matrix.name}: rho {rank.amount} of rank {min(shape)} is rank 0, all zeros")
    factored = config.factored and 0 < number <= matrix.break_even_rank
    if factored and matrix.module in source.trial.read:
        notes.append(f"{matrix.name} stays dense: the model's own code reads its weight or bias")
        factored = False
    if config.factored and matrix.break_even_rank < number < min(shape):
        limit = matrix.break_even_rank
        notes.append(f"{matrix.name} stays dense: rank {number} is above the break-even rank {limit}")
    form = LowRank(number) if factored else Dense()
    tensor = _tensor(source, matrix)
    return Reduction(matrix, tensor, number, min(shape), str(rank), form, source.parameters(matrix))


def _smaller_factors(
    source: Source, matrix: Matrix, rank: Rank, config: LaserConfig, held: Form
) -> Reduction:
    """Of a matrix in factors the first components, which stay factors."""
    if config.mode not in ("top", "none") or config.blocks != 1:
        raise InputError(
            f"{matrix.name} is stored in a {held.key} form, of which only the first components can be kept: "
            f"mode {config.mode}, {config.blocks} blocks",
            "choose --mode top and one block; or first kanna export DIR --format dense --out D2",
        )
    number = _number(source, matrix, rank, matrix.shape)
    full = int(getattr(held, "rank", min(matrix.shape)))
    if number == 0:
        raise InputError(
            f"{matrix.name} is stored in factors, which have a rank of at least 1; {rank} means rank 0",
            "ask for a larger rank; or first kanna export DIR --format dense --out D2",
        )
    form: Form = Pivot(number) if isinstance(held, Pivot) else LowRank(number)
    tensor = _tensor(source, matrix)
    stored = source.parameters(matrix)
    return Reduction(matrix, tensor, min(number, full), full, str(rank), form, stored)


def _tensor(source: Source, matrix: Matrix) -> str:
    return matrix.tensor if source.is_planned else source.tensor_of(matrix)


def _number(source: Source, matrix: Matrix, rank: Rank, shape: tuple[int, int]) -> int:
    if not rank.needs_spectrum:
        return stated_rank(rank, matrix.name, shape)
    if shape != matrix.shape:
        raise InputError(
            f"the rank {rank} looks at the spectrum of a whole matrix",
            "give rho or k=, or leave out --blocks",
        )
    values = singular_values(source.weight(matrix))
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


def _changes(reduction: Reduction, config: LaserConfig) -> bool:
    """Whether the matrix will differ at all."""
    if config.mode in ("none", "zero"):
        return config.mode == "zero"
    return reduction.rank != (0 if config.mode == "bottom" else reduction.full)


def modules_of(reductions: Sequence[Reduction]) -> list[str]:
    """Paths of the modules that hold them, each once."""
    return list(dict.fromkeys(reduction.matrix.module for reduction in reductions))
