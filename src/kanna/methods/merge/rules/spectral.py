"""Merging by singular vectors of whole differences: task singular vectors (TSV-M), isotropic merging (Iso-C),
and singular value calibration (SVC).

All are experimental on language models: a task arithmetic with a tuned `lambda` comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kanna.linalg.decomposition import decompose

Combine = Callable[[Sequence[Tensor]], Tensor]
# Singular values below this part of the largest are rounding; their vectors are any.
_ROUNDING = 1e-6


class Spectral:
    """base + scale M, with a matrix M made of the weighted differences; of vectors, their mean.

    The one chunk is the whole tensor.

    Args:
        base: Index of the base model.
        weights: One for each model.
        columns: Of the tensor; as many as it has values for a vector.
        scale: The `lambda` of recipes.
        combine: Of the weighted differences, the matrix M.
    """

    kept = (0, 0)
    looks = 0

    def __init__(
        self, base: int, weights: Sequence[float], columns: int, scale: float, combine: Combine
    ) -> None:
        self._base, self._weights, self._columns, self._scale = base, weights, columns, scale
        self._combine = combine

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        raise AssertionError("the whole tensor comes at once")

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        base = chunk[self._base]
        differences = [
            values.sub_(base).double().mul_(weight)
            for index, (values, weight) in enumerate(zip(chunk, self._weights, strict=True))
            if index != self._base
        ]
        if len(base) == self._columns:
            total = torch.stack(differences).mean(0)
        else:
            matrices = [one.view(-1, self._columns) for one in differences]
            total = self._combine(matrices).flatten()
        return (total * self._scale).to(base.dtype).add_(base)


def isotropic(differences: Sequence[Tensor]) -> Tensor:
    """Iso-C (Marczak et al. 2025): U V^T of their sum U S V^T, times the mean of S.

    Of a sum of low rank r only the r directions that it has are made equal; the others are no directions of
    any model, and stay 0. The sum of the singular values stays what it was.
    """
    total = sum(differences[1:], start=differences[0])
    if not bool(total.any()):
        return total
    parts = decompose(total)
    rank = int((parts.values > _ROUNDING * parts.values[0]).sum())
    return (parts.left[:, :rank] @ parts.right[:rank]) * parts.values[:rank].mean()


def calibrated(differences: Sequence[Tensor], alpha: float = 1.0) -> Tensor:
    """SVC (Li et al. 2026, arXiv 2602.05536): of the sum U S V^T, values that overlap inflated come back.

    Along the direction u of a singular value s the sum answers a = s v^T, difference i alone a_i = u^T d_i.
    How many times over i is counted there is <a, a_i> / |a_i|^2; s is divided by the mean of these counts
    over the N differences, each at least `alpha`. With 1 nothing grows: a direction that all have alike is
    divided by N, one that a single difference has is left as it is. A difference without any part along u
    counts as `alpha`.
    """
    total = sum(differences[1:], start=differences[0])
    if not bool(total.any()):
        return total
    parts = decompose(total)
    answer = parts.values[:, None] * parts.right
    counts = [_counted(parts.left.T @ one, answer, float(parts.values[0])) for one in differences]
    mean = torch.stack(counts).clamp_min(alpha).mean(0)
    return (parts.left * (parts.values / mean)) @ parts.right


def _counted(own: Tensor, answer: Tensor, largest: float) -> Tensor:
    """<a, a_i> / |a_i|^2 by row; 0 where a_i is rounding beside the largest singular value."""
    squares = own.square().sum(1)
    real = squares > (_ROUNDING * largest) ** 2
    return torch.where(real, (answer * own).sum(1) / torch.where(real, squares, 1.0), 0.0)


def task_vectors(differences: Sequence[Tensor]) -> Tensor:
    """TSV-M (Gargiulo et al. 2025): of N matrices of rank r the largest r / N components each.

    With the vectors of all of them side by side as U (m, k) and V (n, k), each is replaced by the nearest
    matrix with orthonormal columns, its polar factor.
    """
    parts = [decompose(one) for one in differences if bool(one.any())]
    if not parts:
        return torch.zeros_like(differences[0])
    kept = max(1, min(differences[0].shape) // len(differences))
    left = torch.cat([one.left[:, :kept] for one in parts], 1)
    right = torch.cat([one.right[:kept] for one in parts])
    values = torch.cat([one.values[:kept] for one in parts])
    return (_polar(left) * values) @ _polar(right.T).T


def _polar(matrix: Tensor) -> Tensor:
    """U V^T of U S V^T."""
    parts = decompose(matrix)
    return parts.left @ parts.right
