"""Apply a plan: stored tensors in, stored tensors out, one module in memory at a time."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kanna.checkpoint.reader import check_finite
from kanna.linalg.decomposition import decompose
from kanna.linalg.reduction import reduce
from kanna.methods.laser.plan import Plan, Reduction, modules_of
from kanna.methods.laser.weights import seed_of
from kanna.models.matrix import Matrix
from kanna.models.views import read, write
from kanna.result import Result
from kanna.runs.assemble import Factors, assemble, matrix_weight, whole_shape
from kanna.runs.source import Source

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Spectrum(Result):
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


Note = Callable[[Spectrum], None]


def shapes(source: Source, plan: Plan) -> Shapes:
    """Full parameter name -> dtype and shape of all that `tensors` will give."""
    rewritten = plan.rewritten()
    given: Shapes = {}
    for module, form in plan.forms().items():
        parts = rewritten[module]
        dtype = source.dtype(module)
        own = form.tensors(*whole_shape(parts), parts[0].has_bias)
        given |= {f"{module}.{name}": (form.dtype_of(name, dtype), shape) for name, shape in own.items()}
    for reduction in plan.reductions:
        if reduction.matrix.module not in rewritten:
            stored = reduction.tensor
            given[reduction.matrix.tensor] = (
                source.checkpoint.dtype(stored),
                source.checkpoint.shape(stored),
            )
    return given


def tensors(
    source: Source, plan: Plan, device: torch.device, note: Note = lambda _: None
) -> Iterator[tuple[str, Tensor]]:
    """(full parameter name, tensor) of everything that changes.

    Args:
        note: Called with the spectrum of each matrix that was truncated whole.

    Raises:
        InputError: A matrix holds NaN or infinity; it is named.
    """
    rewritten = plan.rewritten()
    for module, parts in rewritten.items():
        yield from _rewritten(source, plan, module, parts, device, note).items()
    for module in modules_of(plan.reductions):
        if module not in rewritten:
            reductions = plan.reductions_of(module)
            parameter = source.checkpoint.tensor(reductions[0].tensor)
            for reduction in reductions:
                matrix = reduction.matrix
                weight = check_finite(read(parameter, matrix.view), matrix.name).to(device)
                parameter = write(parameter, matrix.view, reduced(weight, reduction, plan, note).cpu())
            yield reductions[0].matrix.tensor, parameter


def reduced(weight: Tensor, reduction: Reduction, plan: Plan, note: Note = lambda _: None) -> Tensor:
    """The matrix (m, n) after its reduction, in its dtype."""
    config, parts = plan.config, None
    inside = 0 < reduction.rank < reduction.full
    if config.mode in ("top", "bottom", "random", "noise") and config.blocks == 1 and inside:
        parts = decompose(weight)
        note(_spectrum(reduction, parts.values))
    seed = seed_of(config.seed, reduction.matrix)
    return reduce(weight, reduction.rank, config.mode, seed=seed, blocks=config.blocks, parts=parts)


def _rewritten(
    source: Source, plan: Plan, module: str, parts: tuple[Matrix, ...], device: torch.device, note: Note
) -> dict[str, Tensor]:
    """The tensors of one module's form: factors, and dense slices that are reduced in place."""
    stored = source.module(module)
    new: dict[str, Factors | Tensor] = {}
    for reduction in plan.reductions_of(module):
        matrix = reduction.matrix
        weight = check_finite(matrix_weight(stored, matrix.view), matrix.name).to(device)
        if not reduction.factored:
            new[matrix.name] = reduced(weight, reduction, plan, note).cpu()
            continue
        components = decompose(weight)
        note(_spectrum(reduction, components.values))
        expand, shrink = components.factors(reduction.rank)
        storage = "pivot" if reduction.form.key == "pivot" else "pair"
        new[matrix.name] = Factors(expand.cpu(), shrink.cpu(), storage=storage)
    piece = assemble(stored, parts, new, source.dtype(module))
    assert piece is not None
    return piece.named


def _spectrum(reduction: Reduction, values: Tensor) -> Spectrum:
    squares = values.double().square()
    first = float(values[0])
    total = float(squares.sum())
    return Spectrum(
        matrix=reduction.matrix.name,
        rank=reduction.rank,
        largest=first,
        at_rank=float(values[reduction.rank - 1]) / first if first else 0.0,
        energy=float(squares[: reduction.rank].sum()) / total if total else 1.0,
    )
