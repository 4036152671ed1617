"""Tucker decomposition: a small core, multiplied along each mode by a matrix of orthonormal columns.

For a matrix it is the truncated SVD with the singular values as its core, and "folding" the core into one
side gives an ordinary low-rank pair. For stacks (all heads, all layers of a role) it is more than that.
"""

from dataclasses import dataclass
from math import isqrt, prod

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.truncation import truncated_svd
from kanna.linalg.whitening import basis


@dataclass(frozen=True)
class Tucker:
    """core (r_1, ..., r_N) and factors of shapes (d_i, r_i) with orthonormal columns, float64."""

    core: Tensor
    factors: tuple[Tensor, ...]

    @property
    def parameters(self) -> int:
        return self.core.numel() + sum(factor.numel() for factor in self.factors)

    def dense(self) -> Tensor:
        """The tensor (d_1, ..., d_N) that this stands for."""
        return _multiply(self.core, self.factors)


def tucker(tensor: Tensor, ranks: tuple[int, ...], sweeps: int = 25, tolerance: float = 1e-9) -> Tucker:
    """Tucker decomposition by HOSVD and then HOOI (De Lathauwer, De Moor and Vandewalle 2000, I and II).

    Each HOOI sweep recomputes every factor from the tensor projected on the others, and never raises the
    error. A matrix takes the SVD, where HOOI is already at its fixed point.

    Args:
        tensor: N dimensions, N >= 2.
        ranks: one per dimension; none above the product of the others, which could not be used.
        sweeps: at most so many; 0 gives the HOSVD.
        tolerance: stop when a sweep adds less than this share of the tensor's energy to the core.

    Raises:
        InputError: ranks that do not fit.
    """
    _check_ranks(tensor, ranks)
    tensor = tensor.double()
    if tensor.ndim == 2:
        left, values, right = truncated_svd(tensor, ranks[0])
        return Tucker(torch.diag(values), (left, right.T))
    factors = [_leading(tensor, mode, rank) for mode, rank in enumerate(ranks)]
    core = _project(tensor, factors)
    total, captured = float(tensor.square().sum()), float(core.square().sum())
    for _ in range(sweeps):
        for mode, rank in enumerate(ranks):
            factors[mode] = _leading(_project(tensor, factors, skip=mode), mode, rank)
        core = _project(tensor, factors)
        captured, before = float(core.square().sum()), captured
        if captured - before <= tolerance * total:
            break
    return Tucker(core, tuple(factors))


def fold_core(parts: Tucker) -> tuple[Tensor, Tensor]:
    """A matrix's Tucker form as a pair: expand = U_1 core (m, r), reduce = U_2^T (r, n)."""
    if len(parts.factors) != 2:
        raise InputError(
            "only the core of a matrix folds into a pair", f"this one has {len(parts.factors)} modes"
        )
    return parts.factors[0] @ parts.core, parts.factors[1].T


def pair_parameters(m: int, n: int, rank: int) -> int:
    """Numbers stored by expand (m, r) and reduce (r, n)."""
    return rank * (m + n)


def tucker_parameters(m: int, n: int, rank: int) -> int:
    """Numbers stored by both factors and the r x r core."""
    return rank * (m + n) + rank * rank


def break_even_rank(m: int, n: int, core: bool = False) -> int:
    """The largest rank that stores strictly fewer numbers than the dense (m, n); 0 where none does."""
    if not core:
        return (m * n - 1) // (m + n)
    # The largest r with r^2 + r (m + n) <= mn - 1, in integers: floats lose it for large shapes.
    side = m + n
    return (isqrt(side * side + 4 * (m * n - 1)) - side) // 2


def _leading(tensor: Tensor, mode: int, rank: int) -> Tensor:
    return basis(_unfold(tensor, mode), max_rank=rank).left


def _unfold(tensor: Tensor, mode: int) -> Tensor:
    return tensor.movedim(mode, 0).flatten(1)


def _project(tensor: Tensor, factors: list[Tensor], skip: int | None = None) -> Tensor:
    """Multiply by the transposed factors along every mode but `skip`."""
    return _multiply(tensor, tuple(None if mode == skip else f.T for mode, f in enumerate(factors)))


def _multiply(tensor: Tensor, matrices: tuple[Tensor | None, ...]) -> Tensor:
    for mode, matrix in enumerate(matrices):
        if matrix is not None:
            tensor = torch.tensordot(matrix, tensor, dims=([1], [mode])).movedim(0, mode)
    return tensor


def _check_ranks(tensor: Tensor, ranks: tuple[int, ...]) -> None:
    fits = (
        tensor.ndim >= 2
        and len(ranks) == tensor.ndim
        and all(1 <= rank <= size for rank, size in zip(ranks, tensor.shape, strict=True))
        and all(rank * rank <= prod(ranks) for rank in ranks)
    )
    if not fits:
        raise InputError(
            f"Tucker ranks {tuple(ranks)} do not fit a tensor of shape {tuple(tensor.shape)}",
            "give one rank per dimension, from 1 to its size and at most the product of the others",
        )
