"""One exact singular value decomposition of a matrix, which serves every rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.errors import InputError

# A Gram matrix squares singular values: components below this fraction of the largest are decomposed again.
SMALLEST_BY_GRAM = 1e-3


@dataclass(frozen=True)
class Decomposition:
    """W (m, n) = left diag(values) right with r = min(m, n), all float64 and on the device of W.

    Args:
        left: (m, r) orthonormal columns.
        values: (r,) singular values, not increasing.
        right: (r, n) orthonormal rows.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def top(self, rank: int) -> Tensor:
        """The best approximation of that rank (m, n)."""
        return self._sum(slice(0, self._checked(rank)))

    def bottom(self, rank: int) -> Tensor:
        """What `top(rank)` leaves (m, n): the components with indices rank..r-1."""
        return self._sum(slice(self._checked(rank), None))

    def between(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The sum of the components with these indices (m, n).

        Raises:
            InputError: An index outside 0..r-1, or one that occurs twice.
        """
        chosen = torch.as_tensor(indices, dtype=torch.long)
        inside = bool(((chosen >= 0) & (chosen < len(self.values))).all())
        if not inside or len(chosen.unique()) < len(chosen):
            raise InputError(f"components are wanted once each, with indices below {len(self.values)}")
        return self._sum(chosen.to(self.values.device))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """expand (m, k) = U_k sqrt(S_k) and reduce (k, n) = sqrt(S_k) V_k^T, whose product is `top(rank)`."""
        rank = self._checked(rank)
        root = self.values[:rank].sqrt()
        expand, reduce = self.left[:, :rank] * root, root[:, None] * self.right[:rank]
        return expand.contiguous(), reduce.contiguous()

    def _sum(self, chosen: slice | Tensor) -> Tensor:
        return (self.left[:, chosen] * self.values[chosen]) @ self.right[chosen]

    def _checked(self, rank: int) -> int:
        if not 0 <= rank <= len(self.values):
            raise InputError(
                f"rank {rank} was asked of a matrix of rank {len(self.values)}",
                f"ask for 0 to {len(self.values)}",
            )
        return rank


def decompose(weight: Tensor) -> Decomposition:
    """The singular value decomposition of W (m, n), computed in float64 whatever its dtype.

    From the eigenvectors of the smaller Gram matrix, which for wide and tall matrices is several times faster
    than an SVD, with the components that are too small for it decomposed once more. Left and right vectors
    are orthonormal and their product is W, both to about 1e-13 of the largest singular value.

    Raises:
        InputError: Not a matrix of floating-point numbers, or some that are not finite.
    """
    check_finite_matrix(weight)
    rows, columns = weight.shape
    # By a power of two, so that no square over- or underflows and no digit changes.
    scale = 2.0 ** (math.frexp(float(weight.detach().abs().max()))[1] - 1)
    matrix = weight.detach().double() / scale
    if rows <= columns:
        left, values, right = _wide(matrix)
        return Decomposition(left, values * scale, right)
    right, values, left = _wide(matrix.T)
    return Decomposition(left.T, values * scale, right.T)


def singular_gradient(parts: Decomposition, gradient: Tensor) -> Tensor:
    """(r,) dL/ds_i = u_i^T G v_i, float64.

    The derivative by each singular value as the vectors stay; for values that occur once, that of
    the singular value itself.

    Args:
        gradient: G = dL/dW (m, n), any dtype.
    """
    expected = (len(parts.left), parts.right.shape[1])
    if tuple(gradient.shape) != expected:
        raise InputError(f"a gradient of shape {expected} was expected, got {tuple(gradient.shape)}")
    moved = gradient.detach().to(parts.values.device, torch.float64)
    return ((parts.left.T @ moved) * parts.right).sum(dim=1)


def check_finite_matrix(weight: Tensor) -> None:
    """Refuse what cannot be decomposed.

    Raises:
        InputError: Not a matrix of floating-point numbers, or some that are not finite.
    """
    if weight.ndim != 2 or 0 in weight.shape or not weight.is_floating_point():
        raise InputError(
            f"a matrix of floating-point numbers was expected, got {weight.dtype} of shape "
            f"{tuple(weight.shape)}"
        )
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        raise InputError(
            f"{int((~finite).sum())} of the {weight.numel()} numbers of a weight are NaN or infinite",
            "check the checkpoint for overflow",
        )


def _wide(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors, values and right vectors of a matrix (m, n) with m <= n."""
    left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)
    projected = left.T @ matrix  # rows s_i v_i^T: orthogonal, but for rounding relative to the largest
    values = projected.norm(dim=1)
    head = int((values > SMALLEST_BY_GRAM * values[0]).sum())
    if head == len(values):
        return left, values.cummin(0).values, projected.div_(values[:, None])
    return _mended(left, projected, head)


def _mended(left: Tensor, projected: Tensor, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """The decomposition of left @ projected, of whose rows only the first `head` are orthogonal.

    With projected = R^T Q^T, the head of R^T is diagonal already and the rows below it have next to nothing
    to the left of their own block (rounding, of the size of the largest singular value over
    SMALLEST_BY_GRAM at most). That block alone needs an SVD.
    """
    frame, triangle = torch.linalg.qr(projected.T)
    pivots = triangle.diagonal()[:head]
    inner, tail, outer = torch.linalg.svd(triangle[head:, head:].T)
    left = torch.cat([left[:, :head], left[:, head:] @ inner], dim=1)
    right = torch.cat([frame[:, :head].T * pivots.sign()[:, None], outer @ frame[:, head:].T])
    return left, torch.cat([pivots.abs(), tail]).cummin(0).values, right
