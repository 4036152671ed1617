"""Leading singular triplets of a matrix; `decomposition` gives all of them."""

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
    _check_rank(matrix, rank)
    weight = matrix.double()
    parts = basis(weight, max_rank=rank)
    if parts.energy[rank - 1] <= SMALLEST_BY_GRAM**2 * parts.energy[0]:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    projected = parts.left.T @ weight
    values = projected.norm(dim=1)
    return parts.left, values, projected / values[:, None]


def _check_rank(matrix: Tensor, rank: int) -> None:
    if matrix.ndim != 2 or not 1 <= rank <= min(matrix.shape):
        raise InputError(
            f"rank {rank} does not fit a matrix of shape {tuple(matrix.shape)}",
            "ask for 1 to min(m, n)",
        )
