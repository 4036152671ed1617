"""Apply a plan: stored tensors in, stored tensors out, one parameter in memory at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kanna.checkpoint.reader import Checkpoint, check_finite
from kanna.errors import InputError
from kanna.forms import Dense, Form, LowRank, Rows
from kanna.linalg.decomposition import decompose
from kanna.linalg.reduction import reduce
from kanna.methods.laser.plan import Plan, Reduction, reductions_of, tensor_of, weight_of
from kanna.methods.laser.weights import seed_of
from kanna.models.matrix import Matrix
from kanna.models.names import tensor_name
from kanna.models.views import read, write
from kanna.runs.assemble import Factors, assemble

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Spectrum:
    """What an edit did to a matrix' singular values.

    Args:
        matrix: Its name.
        rank: Components that count.
        largest: The first singular value.
        at_rank: The one at `rank` over the first; 0 for rank 0.
        energy: Share of the sum of squares that the first `rank` hold.
    """

    matrix: str
    rank: int
    largest: float
    at_rank: float
    energy: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Factored:
    """A module that is going to be stored as factors.

    Args:
        module: Path in the class of `architectures[0]`.
        parts: All its matrices, in the order of their rows.
        form: Its form.
        bias: Whether it has one.
    """

    module: str
    parts: tuple[Matrix, ...]
    form: Form
    bias: bool


def factored_modules(plan: Plan) -> list[Factored]:
    """Modules of which at least one matrix is stored as factors."""
    by_name = {one.matrix.name: one for one in plan.reductions if one.factored}
    modules = dict.fromkeys(one.matrix.module for one in by_name.values())
    return [_factored(plan, module, by_name) for module in modules]


def piece_shapes(checkpoint: Checkpoint, plan: Plan, modules: Sequence[Factored]) -> Shapes:
    """Full parameter name -> dtype and shape of all that `pieces` will give."""
    inside = {one.module for one in modules}
    found: Shapes = {}
    for one in modules:
        rows, columns = _module_shape(one)
        dtype = checkpoint.dtype(tensor_of(checkpoint, plan.inventory, one.parts[0]))
        shapes = one.form.tensors(rows, columns, one.bias)
        found |= {
            f"{one.module}.{suffix}": (one.form.dtype_of(suffix, dtype), shape)
            for suffix, shape in shapes.items()
        }
    for reduction in plan.reductions:
        if reduction.matrix.module not in inside:
            stored = reduction.tensor
            found[reduction.matrix.tensor] = (checkpoint.dtype(stored), checkpoint.shape(stored))
    return found


def pieces(
    checkpoint: Checkpoint,
    plan: Plan,
    modules: Sequence[Factored],
    device: torch.device,
    note: Callable[[Spectrum], None] = lambda _: None,
) -> Iterator[tuple[str, Tensor]]:
    """(full parameter name, tensor) of everything that changes.

    Args:
        note: Called with the spectrum of each matrix that was truncated whole.
    """
    inside = {one.module for one in modules}
    for one in modules:
        yield from _factors(checkpoint, plan, one, device, note).items()
    tensors = dict.fromkeys(one.tensor for one in plan.reductions if one.matrix.module not in inside)
    for tensor in tensors:
        full = reductions_of(plan, tensor)[0].matrix.tensor
        yield (
            full,
            reduced_parameter(checkpoint.tensor(tensor), reductions_of(plan, tensor), plan, device, note),
        )


def reduced_parameter(
    parameter: Tensor,
    reductions: Sequence[Reduction],
    plan: Plan,
    device: torch.device,
    note: Callable[[Spectrum], None] = lambda _: None,
) -> Tensor:
    """A copy of a stored parameter in which the matrices of `reductions` are reduced, in its dtype.

    Raises:
        InputError: One of them holds NaN or infinity; it is named.
    """
    for one in reductions:
        weight = check_finite(read(parameter, one.matrix.view), one.matrix.name).to(device)
        parameter = write(parameter, one.matrix.view, reduced(weight, one, plan, note).cpu())
    return parameter


def reduced(
    weight: Tensor, one: Reduction, plan: Plan, note: Callable[[Spectrum], None] = lambda _: None
) -> Tensor:
    """The matrix (m, n) after its reduction, in its dtype."""
    config = plan.config
    parts = None
    if config.mode in ("top", "bottom", "random", "noise") and config.blocks == 1 and 0 < one.rank < one.full:
        parts = decompose(weight)
        note(_spectrum(one, parts.values))
    seed = seed_of(config.seed, one.matrix)
    return reduce(weight, one.rank, config.mode, seed=seed, blocks=config.blocks, parts=parts)


def _spectrum(one: Reduction, values: Tensor) -> Spectrum:
    squares = values.double().square()
    first = float(values[0])
    total = float(squares.sum())
    return Spectrum(
        matrix=one.matrix.name,
        rank=one.rank,
        largest=first,
        at_rank=float(values[one.rank - 1]) / first if first else 0.0,
        energy=float(squares[: one.rank].sum()) / total if total else 1.0,
    )


def _factored(plan: Plan, module: str, factored: dict[str, Reduction]) -> Factored:
    parts = tuple(one for one in plan.inventory.matrices if one.module == module)
    forms: list[Form] = [
        LowRank(factored[one.name].rank) if one.name in factored else Dense() for one in parts
    ]
    if parts[0].view.rows is None:
        return Factored(module, parts, forms[0], parts[0].has_bias)
    slices = []
    for one, form in zip(parts, forms, strict=True):
        rows = one.view.rows
        assert rows is not None
        slices.append(((rows.start, rows.block, rows.stride, rows.count), form))
    return Factored(module, parts, Rows(tuple(slices)), parts[0].has_bias)


def _module_shape(one: Factored) -> tuple[int, int]:
    return sum(part.out_features for part in one.parts), one.parts[0].in_features


def _factors(
    checkpoint: Checkpoint,
    plan: Plan,
    one: Factored,
    device: torch.device,
    note: Callable[[Spectrum], None],
) -> dict[str, Tensor]:
    """The tensors of one module's form; matrices of it that stay dense are reduced in place."""
    tensor = tensor_of(checkpoint, plan.inventory, one.parts[0])
    mine = {reduction.matrix.name: reduction for reduction in reductions_of(plan, tensor)}
    dense = [reduction for reduction in mine.values() if not reduction.factored]
    holder = nn.Module()
    parameter = reduced_parameter(checkpoint.tensor(tensor), dense, plan, device, note)
    holder.register_buffer(one.parts[0].parameter, parameter)
    if one.bias:
        holder.register_buffer("bias", checkpoint.tensor(_bias_of(checkpoint, plan, one)))
    factors = {}
    for part in one.parts:
        reduction = mine.get(part.name)
        if reduction is None or not reduction.factored:
            continue
        parts = decompose(weight_of(checkpoint, part, tensor).to(device))
        note(_spectrum(reduction, parts.values))
        expand, shrink = parts.factors(reduction.rank)
        factors[part.name] = Factors(expand.cpu(), shrink.cpu())
    piece = assemble(holder, one.parts, factors, "pair", checkpoint.dtype(tensor))
    assert piece is not None
    return piece.named


def _bias_of(checkpoint: Checkpoint, plan: Plan, one: Factored) -> str:
    name = tensor_name(f"{one.module}.bias", checkpoint.tensors, plan.inventory.base_model_prefix)
    if name is None:
        raise InputError(f"{checkpoint.directory} lacks the bias of {one.module}", "fetch the model again")
    return name
