"""Which rank each matrix gets."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.forms import Dense, Form, LowRank, Pivot
from kanna.linalg.allocation import Curve, Ranks, global_, uniform
from kanna.methods.lowrank.config import LowRankConfig
from kanna.models.matrix import Matrix

_DENSE = Dense()


Forms = Mapping[str, Form]


def curve_of(matrix: Matrix, energy: Tensor | None, config: LowRankConfig, form: Form = _DENSE) -> Curve:
    """Costs and errors of one matrix; without energies the errors are those of equal singular values.

    Args:
        form: How the matrix is stored now. To keep it costs what it stores, and no rank is above its own.
    """
    m, n = matrix.shape
    ranks = _savings(matrix, config, form, config.align)
    spectrum = torch.ones(min(m, n), dtype=torch.float64) if energy is None else energy
    tails = torch.cat([spectrum.flip(0).cumsum(0).flip(0), spectrum.new_zeros(1)])
    cost = tuple(_cost(config, m, n, k) for k in ranks)
    return Curve(matrix.name, tails, ranks, cost, form.parameters(m, n))


def allocate(
    matrices: Sequence[Matrix], energies: Mapping[str, Tensor], config: LowRankConfig, forms: Forms
) -> Ranks:
    """Rank by matrix name, None for one that stays as it is.

    Args:
        energies: By matrix name; may be empty for uniform allocation or a fixed rank.
        forms: How matrices are stored now, by name.

    Raises:
        InputError: A budget below what the smallest ranks need, or a rank that no matrix can take.
    """
    if config.rank is not None:
        return _fixed(matrices, config.rank, config, forms)
    curves = [curve_of(matrix, energies.get(matrix.name), config, forms[matrix.name]) for matrix in matrices]
    assert config.keep is not None
    if config.allocation == "global":
        return global_(curves, config.keep, config.floor)
    return uniform(curves, config.keep)


def kept_parameters(matrices: Sequence[Matrix], ranks: Ranks, config: LowRankConfig, forms: Forms) -> int:
    """Parameters of the selected matrices under an allocation, pivot indices counted."""
    chosen = ((matrix, ranks[matrix.name]) for matrix in matrices)
    return sum(
        forms[matrix.name].parameters(*matrix.shape) if rank is None else _cost(config, *matrix.shape, rank)
        for matrix, rank in chosen
    )


def highest_rank(matrix: Matrix, config: LowRankConfig, form: Form) -> int:
    """The highest rank that makes a matrix smaller than it is in its form; 0 where none does."""
    m, n = matrix.shape
    stored = form.parameters(m, n)
    ranks = range(1, int(getattr(form, "rank", min(m, n))) + 1)
    # Costs grow with the rank.
    return bisect_left(ranks, stored, key=lambda rank: _cost(config, m, n, rank))


def _fixed(matrices: Sequence[Matrix], rank: int, config: LowRankConfig, forms: Forms) -> Ranks:
    """The same rank everywhere; a matrix that it would not make smaller stays as it is."""
    savings = {matrix.name: _savings(matrix, config, forms[matrix.name]) for matrix in matrices}
    ranks: Ranks = {name: rank if rank in saving else None for name, saving in savings.items()}
    if all(value is None for value in ranks.values()):
        most = max(max(saving, default=0) for saving in savings.values())
        raise InputError(
            f"rank {rank} makes none of the {len(matrices)} selected matrices smaller",
            f"ask for a rank of at most {most}",
        )
    return ranks


def _savings(matrix: Matrix, config: LowRankConfig, form: Form, step: int = 1) -> tuple[int, ...]:
    """Multiples of `step` that make a matrix smaller than it is in its form, and are no more than it has."""
    m, n = matrix.shape
    highest, stored = int(getattr(form, "rank", min(m, n))), form.parameters(m, n)
    return tuple(k for k in range(step, highest + 1, step) if _cost(config, m, n, k) < stored)


def _cost(config: LowRankConfig, m: int, n: int, rank: int) -> int:
    if config.storage == "pivot":
        return Pivot(rank).parameters(m, n) if rank < min(m, n + 1) else m * n
    return LowRank(rank).parameters(m, n)
