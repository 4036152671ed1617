"""Truncated singular value decompositions of a matrix, and its top and bottom parts."""

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.whitening import basis

# A Gram matrix squares singular values: one a thousandth of the largest keeps ten digits, smaller ones fewer.
SMALLEST_BY_GRAM = 1e-3


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets U (m, k), S (k,), Vh (k, n) of W (m, n), float64.

    By the eigenvectors of the smaller Gram matrix, several times faster than an SVD; by torch.linalg.svd
    where a singular value asked for is too small for that.

    Raises:
        InputError: a rank outside 1..min(m, n), or numbers that are not finite.
    """
    _check_rank(matrix, rank, least=1)
    weight = matrix.double()
    parts = basis(weight, max_rank=rank)
    if parts.energy[rank - 1] <= SMALLEST_BY_GRAM**2 * parts.energy[0]:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    projected = parts.left.T @ weight
    values = projected.norm(dim=1)
    return parts.left, values, projected / values[:, None]


def randomized_svd(
    matrix: Tensor, rank: int, seed: int = 0, oversample: int = 16, sweeps: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate leading triplets as `truncated_svd` gives, for ranks below a tenth of the matrix.

    A random block, `sweeps` power iterations, and an exact SVD inside the block it spans (Halko, Martinsson
    and Tropp 2011, algorithm 4.4). Above a tenth the exact route is faster.
    """
    _check_rank(matrix, rank, least=1)
    weight = matrix.double()
    width = min(rank + oversample, *weight.shape)
    start = torch.randn(
        weight.shape[1], width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    block = torch.linalg.qr(weight @ start.to(weight.device)).Q
    for _ in range(sweeps):
        block = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ block).Q).Q
    inner, values, right = torch.linalg.svd(block.T @ weight, full_matrices=False)
    return (block @ inner)[:, :rank], values[:rank], right[:rank]


def split(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(top, bottom): the best approximation of `rank` and what it leaves; their sum is W to rounding.

    Rank 0 and full rank give (0, W) and (W, 0) exactly. Both in W's dtype.
    """
    _check_rank(weight, rank, least=0)
    if rank == 0:
        return torch.zeros_like(weight), weight.clone()
    if rank == min(weight.shape):
        return weight.clone(), torch.zeros_like(weight)
    left = basis(weight, max_rank=rank).left
    top = (left @ (left.T @ weight.double())).to(weight.dtype)
    return top, weight - top


def _check_rank(matrix: Tensor, rank: int, least: int) -> None:
    if matrix.ndim != 2 or not least <= rank <= min(matrix.shape):
        raise InputError(
            f"rank {rank} does not fit a matrix of shape {tuple(matrix.shape)}",
            f"ask for {least} to min(m, n)",
        )
