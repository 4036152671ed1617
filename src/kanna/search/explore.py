"""The design space of a configuration, by arithmetic on shapes: no weights are needed or read.

Definitions follow the characterisation of Tucker decomposition of language models (arXiv 2405.06626): a
design is a set of layers, a set of roles shared by them, and a rank. Tucker of a matrix at rank r keeps two
factors and an r x r core, r (m + n) + r^2 entries; folded into a pair it keeps r (m + n).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix
from kanna.models.skeleton import skeleton

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


@dataclass(frozen=True)
class RoleSize:
    """One role of the design space.

    Args:
        role: Its name.
        matrices: How many there are in the whole model.
        parameters: Of them all.
        removed: Parameters saved by reducing every one of them to the rank, the core multiplied in.
        removed_with_core: The same where the rank x rank core is stored beside the factors.
    """

    role: str
    matrices: int
    parameters: int
    removed: int
    removed_with_core: int


@dataclass(frozen=True)
class SpaceResult:
    """What can be chosen, and what it would remove.

    Args:
        model: Name of the directory or file.
        architecture: Class of the model.
        parameters: Of the whole model.
        layers: L, blocks with a compressible matrix.
        tensors: T, roles.
        size: (2^L - 1)(2^T - 1), designs per rank.
        rank: The rank for which removals are given.
        roles: Sizes by role.
        by_layer: Parameters of compressible matrices by layer.
        rungs: The ladder with the core multiplied in.
        rungs_with_core: The ladder with the core stored.
    """

    model: str
    architecture: str
    parameters: int
    layers: int
    tensors: int
    size: int
    rank: int
    roles: tuple[RoleSize, ...]
    by_layer: dict[int, int]
    rungs: tuple[Rung, ...]
    rungs_with_core: tuple[Rung, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self)}


def explore_space(config: str | Path, *, rank: int = 1) -> SpaceResult:
    """Size of the space of (layers, roles) designs, and which shares of the parameters it can remove.

    Args:
        config: A directory with a config.json, or such a file.
        rank: Every chosen matrix is reduced to it.

    Returns:
        How many designs there are, and what each role, layer and number of layers holds.

    Raises:
        InputError: No or unknown configuration, or a rank that removes nothing.
    """
    path = Path(config).expanduser()
    if not path.exists():
        raise InputError(
            f"{path} does not exist", "give the directory of a model, or its config.json; no weights needed"
        )
    listed = inventory(skeleton(path))
    if not listed.compressible:
        raise InputError(f"no matrix of {listed.architecture} can be compressed", listed.refused[0].refused)
    by_role = parameters_by_role(listed.compressible)
    by_layer = parameters_by_layer(listed.compressible)
    return SpaceResult(
        model=(path if path.is_dir() else path.absolute().parent).resolve().name,
        architecture=listed.architecture,
        parameters=listed.parameters,
        layers=len(by_layer),
        tensors=len(by_role),
        size=space_size(len(by_layer), len(by_role)),
        rank=rank,
        roles=tuple(
            RoleSize(
                role=role,
                matrices=len(matrices := [matrix for matrix in listed.compressible if matrix.role == role]),
                parameters=parameters,
                removed=removed_parameters(matrices, rank, fold_core=True),
                removed_with_core=removed_parameters(matrices, rank, fold_core=False),
            )
            for role, parameters in by_role.items()
        ),
        by_layer=by_layer,
        rungs=ladder(listed, rank, fold_core=True),
        rungs_with_core=ladder(listed, rank, fold_core=False),
    )


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
    sizes: Counter[str] = Counter()
    for matrix in matrices:
        sizes[matrix.role] += matrix.parameters
    return dict(sizes)


def parameters_by_layer(matrices: Iterable[Matrix]) -> dict[int, int]:
    """Parameters of `matrices` per layer, by layer."""
    sizes: Counter[int] = Counter()
    for matrix in matrices:
        sizes[matrix.layer] += matrix.parameters
    return dict(sizes)


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
    rungs = []
    for target in targets:
        layers = round(target / 100 * inventory.parameters * depth / removed)
        layers = min(depth, max(1, layers))
        part = removed * layers // depth
        rungs.append(Rung(target, layers, part, 100 * part / inventory.parameters))
    nearest: dict[int, Rung] = {}
    for rung in sorted(rungs, key=lambda step: abs(step.share - step.target)):
        nearest.setdefault(rung.layers, rung)
    return tuple(sorted(nearest.values(), key=lambda step: step.layers))
