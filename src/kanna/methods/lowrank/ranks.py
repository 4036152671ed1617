"""Which rank each matrix gets."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.forms import LowRank, Pivot
from kanna.linalg.allocation import Curve, Ranks, global_, uniform
from kanna.methods.lowrank.config import LowRankConfig
from kanna.models.matrix import Matrix


def curve_of(matrix: Matrix, energy: Tensor | None, config: LowRankConfig) -> Curve:
    """Costs and errors of one matrix; without energies the errors are those of equal singular values."""
    m, n = matrix.shape
    ranks = tuple(
        k for k in range(config.align, min(m, n) + 1, config.align) if _cost(config, m, n, k) < m * n
    )
    spectrum = torch.ones(min(m, n), dtype=torch.float64) if energy is None else energy
    tails = torch.cat([spectrum.flip(0).cumsum(0).flip(0), spectrum.new_zeros(1)])
    cost = tuple(_cost(config, m, n, k) for k in ranks)
    return Curve(matrix.name, tails, ranks, cost, m * n)


def allocate(matrices: Sequence[Matrix], energies: Mapping[str, Tensor], config: LowRankConfig) -> Ranks:
    """Rank by matrix name, None for one that stays dense.

    Args:
        energies: By matrix name; may be empty for uniform allocation or a fixed rank.

    Raises:
        InputError: A budget below what the smallest ranks need, or a rank that no matrix can take.
    """
    if config.rank is not None:
        return _fixed(matrices, config.rank, config)
    curves = [curve_of(matrix, energies.get(matrix.name), config) for matrix in matrices]
    assert config.keep is not None
    if config.allocation == "global":
        return global_(curves, config.keep, config.floor)
    return uniform(curves, config.keep)


def kept_parameters(matrices: Sequence[Matrix], ranks: Ranks, config: LowRankConfig) -> int:
    """Parameters of the selected matrices under an allocation, pivot indices counted."""
    chosen = ((matrix, ranks[matrix.name]) for matrix in matrices)
    return sum(m.parameters if k is None else _cost(config, *m.shape, k) for m, k in chosen)


def _fixed(matrices: Sequence[Matrix], rank: int, config: LowRankConfig) -> Ranks:
    """The same rank everywhere; dense where that rank would not be smaller."""
    ranks: Ranks = {}
    for matrix in matrices:
        m, n = matrix.shape
        saves = rank <= min(m, n) and _cost(config, m, n, rank) < m * n
        ranks[matrix.name] = rank if saves else None
    if all(value is None for value in ranks.values()):
        most = max(matrix.break_even_rank for matrix in matrices)
        raise InputError(
            f"rank {rank} makes none of the {len(matrices)} selected matrices smaller",
            f"ask for a rank of at most {most}",
        )
    return ranks


def _cost(config: LowRankConfig, m: int, n: int, rank: int) -> int:
    if config.storage == "pivot":
        return Pivot(rank).parameters(m, n) if rank < min(m, n + 1) else m * n
    return LowRank(rank).parameters(m, n)
