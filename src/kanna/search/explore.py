"""The design space of a configuration, by arithmetic on shapes: no weights are needed or read."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.models.census import (
    Rung,
    ladder,
    parameters_by_layer,
    parameters_by_role,
    removed_parameters,
    space_size,
)
from kanna.models.inventory import inventory
from kanna.models.skeleton import skeleton


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

    Follows the characterisation of low-rank decomposition of language models (arXiv 2405.06626).

    Args:
        config: A directory with a config.json, or such a file.
        rank: Every chosen matrix is reduced to it.

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
