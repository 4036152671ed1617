"""Arithmetic on a configuration alone: how large the design space is, and what a rank would remove.

Definitions follow the characterisation of Tucker decomposition of language models (arXiv 2405.06626): a
design is a set of layers, a set of roles shared by them, and a rank. Tucker of a matrix at rank r keeps two
factors and an r x r core, r (m + n) + r^2 entries; folded into a pair it keeps r (m + n).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kanna.errors import InputError
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix

Key = TypeVar("Key")

# Percent of a model's parameters removed, the steps of the published case study.
TARGETS = (6.0, 9.0, 15.0, 21.0, 33.0, 48.0, 60.0, 75.0, 84.0, 96.0)


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Args:
        target: Percent of the whole model that the step aims at.
        layers: Blocks of which every compressible matrix is reduced.
        removed: Parameters that this removes.
        share: `removed` as percent of all parameters of the model.
    """

    target: float
    layers: int
    removed: int
    share: float


def space_size(layers: int, tensors: int) -> int:
    """Designs per rank: non-empty sets of `layers` layers times non-empty sets of `tensors` roles."""
    return (2**layers - 1) * (2**tensors - 1)


def kept_parameters(matrix: Matrix, rank: int, fold_core: bool) -> int:
    """Entries left of `matrix` at `rank`; all of them where the factors would not be smaller."""
    core = 0 if fold_core else rank * rank
    return min(matrix.parameters, rank * (matrix.out_features + matrix.in_features) + core)


def removed_parameters(matrices: Iterable[Matrix], rank: int, fold_core: bool) -> int:
    """Parameters saved by reducing every one of `matrices` to `rank`.

    Args:
        matrices: Those to reduce.
        rank: Rank of each, at least 1; a matrix for which it saves nothing stays dense.
        fold_core: Whether the r x r core is multiplied into one factor, as it is for use.

    Raises:
        InputError: `rank` is below 1.
    """
    if rank < 1:
        raise InputError(f"the rank must be at least 1, found {rank}", "give a positive --rank")
    return sum(matrix.parameters - kept_parameters(matrix, rank, fold_core) for matrix in matrices)


def parameters_by_role(matrices: Iterable[Matrix]) -> dict[str, int]:
    """Parameters of `matrices` per role, in the order in which the roles occur."""
    return _sum_by((matrix.role, matrix.parameters) for matrix in matrices)


def parameters_by_layer(matrices: Iterable[Matrix]) -> dict[int, int]:
    """Parameters of `matrices` per layer, by layer."""
    return _sum_by((matrix.layer, matrix.parameters) for matrix in matrices)


def ladder(
    inventory: Inventory, rank: int = 1, fold_core: bool = True, targets: Sequence[float] = TARGETS
) -> tuple[Rung, ...]:
    """The steps from few to many reduced layers, each target snapped to the nearest number of layers.

    Targets that fall on the same number of layers give one rung, that of the nearest target. Where layers
    differ in size, they count as the mean layer.

    Raises:
        InputError: `rank` removes nothing from any compressible matrix.
    """
    depth = len({matrix.layer for matrix in inventory.compressible})
    removed = removed_parameters(inventory.compressible, rank, fold_core)
    if removed == 0:
        raise InputError(f"rank {rank} removes nothing from this model", "choose a lower rank")
    rungs = [_rung(target, inventory, removed, depth) for target in targets]
    nearest: dict[int, Rung] = {}
    for rung in sorted(rungs, key=lambda step: abs(step.share - step.target)):
        nearest.setdefault(rung.layers, rung)
    return tuple(sorted(nearest.values(), key=lambda step: step.layers))


def _rung(target: float, inventory: Inventory, removed: int, depth: int) -> Rung:
    """`removed` is what all `depth` layers together lose."""
    layers = round(target / 100 * inventory.parameters * depth / removed)
    layers = min(depth, max(1, layers))
    part = removed * layers // depth
    return Rung(target, layers, part, 100 * part / inventory.parameters)


def _sum_by(pairs: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    total: Counter[Key] = Counter()
    for key, count in pairs:
        total[key] += count
    return dict(total)
