"""One exact decomposition of a matrix that serves every rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.errors import InputError

# A Gram matrix squares singular values: one of 1e-4 of the largest keeps eight digits, smaller ones fewer.
SMALLEST_BY_GRAM = 1e-4


@dataclass(frozen=True)
class Decomposition:
    """W (m, n) = left diag(values) right with r = min(m, n), all float64.

    Args:
        left: (m, r) orthonormal columns.
        values: (r,) singular values, descending.
        right: (r, n) orthonormal rows.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def top(self, rank: int) -> Tensor:
        """The best approximation of that rank (m, n), float64."""
        return self.between(range(rank))

    def bottom(self, rank: int) -> Tensor:
        """What `top(rank)` leaves: the components from index `rank` on."""
        return self.between(range(rank, len(self.values)))

    def between(self, indices: Sequence[int]) -> Tensor:
        """The sum of these components (m, n), float64."""
        if isinstance(indices, range) and indices.step == 1:
            part = slice(indices.start, max(indices.start, indices.stop))
            return (self.left[:, part] * self.values[part]) @ self.right[part]
        chosen = torch.as_tensor(list(indices), dtype=torch.long, device=self.values.device)
        return (self.left[:, chosen] * self.values[chosen]) @ self.right[chosen]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """expand (m, k) and reduce (k, n) of `top(rank)`, the singular values shared evenly."""
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]

    def tail_energy(self) -> Tensor:
        """(r + 1,) sum of squared singular values from each index on: the squared error of every rank."""
        squares = self.values.square()
        sums = squares.flip(0).cumsum(0).flip(0)
        return torch.cat([sums, sums.new_zeros(1)])


def decompose(weight: Tensor) -> Decomposition:
    """The singular value decomposition of a matrix, on its device, whatever its dtype.

    By the eigenvectors of the smaller Gram matrix in float64, several times faster than an SVD; by
    torch.linalg.svd where a singular value is too small for that.

    Raises:
        InputError: Not a matrix, or numbers that are not finite.
    """
    if weight.ndim != 2 or not bool(torch.isfinite(weight).all()):
        raise InputError(
            f"a finite matrix is needed, found shape {tuple(weight.shape)} with "
            f"{int((~torch.isfinite(weight)).sum())} values that are not finite",
            "check the checkpoint",
        )
    matrix = weight.double()
    if matrix.shape[0] > matrix.shape[1]:
        flipped = decompose(matrix.T)
        return Decomposition(flipped.right.T, flipped.values, flipped.left.T)
    energy, vectors = torch.linalg.eigh(matrix @ matrix.T)
    if float(energy[0]) <= SMALLEST_BY_GRAM**2 * float(energy[-1]):
        return Decomposition(*torch.linalg.svd(matrix, full_matrices=False))
    left = vectors.flip(1)
    projected = left.T @ matrix
    values = projected.norm(dim=1)
    order = values.argsort(descending=True, stable=True)
    left, projected, values = left[:, order], projected[order], values[order]
    return Decomposition(left, values, projected / values[:, None])


def singular_gradient(parts: Decomposition, gradient: Tensor) -> Tensor:
    """(r,) dL/ds_i = u_i^T G v_i, from G = dL/dW (m, n); exact where singular values differ."""
    return ((parts.left.T @ gradient.double()) * parts.right).sum(1)
