"""Pivot storage: k rows of the low-rank weight as they are, the others as mixtures of them.

W' = expand @ reduce has rank k, so k well-chosen rows span all: W'[rest] = mix @ W'[chosen]. Stored are
the chosen rows (k, n) and mix (m - k, k): k^2 numbers fewer than the pair, and never more than the dense
weight. Lossless in exact arithmetic (PIFA, ICML 2025, stores the same; the choice of rows is ours).
"""

import torch
from torch import Tensor

from kanna.errors import InputError

# Rows are exchanged until no entry of `mix` exceeds this, so that rounding of stored rows is not amplified.
LARGEST_MIX = 1.2


def pivot_factors(expand: Tensor, reduce: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the pair W' = expand @ reduce into chosen rows and mixtures.

    Args:
        expand: (m, k). reduce: (k, n).

    Returns:
        order: (m,) int64, basis: (k, n) float64, mix: (m - k, k) float64, such that
        W' x = cat(basis x, mix basis x)[order].

    Raises:
        InputError: shapes that are no pair of rank k < m.
    """
    m, k = expand.shape
    if reduce.shape[0] != k or not 1 <= k < m:
        raise InputError(
            f"pivot storage needs expand (m, k) and reduce (k, n) with k < m, "
            f"got {tuple(expand.shape)} and {tuple(reduce.shape)}",
            "keep a matrix of full rank dense",
        )
    # Orthonormal columns first: rows are then comparable whatever the scales in `expand`.
    frame, triangle = torch.linalg.qr(expand.double())
    rows, mix = _choose(frame)
    basis = frame[rows[:k]] @ (triangle @ reduce.double())
    order = torch.empty_like(rows)
    order[rows] = torch.arange(m, device=rows.device)
    return order, basis, mix


def _choose(frame: Tensor) -> tuple[Tensor, Tensor]:
    """A row order whose first k rows span `frame` (m, k) well, and the mixtures that give the others.

    Gaussian elimination with partial pivoting picks the start, then single exchanges of rows raise the
    volume of the chosen block: each swap multiplies its determinant by the entry of `mix` swapped on
    (Goreinov et al. 2010, "How to find a good submatrix"), so it ends.
    """
    k = frame.shape[1]
    permutation, lower, _ = torch.linalg.lu(frame)
    rows = permutation.argmax(dim=0)
    mix = torch.linalg.solve_triangular(lower[:k], lower[k:], upper=False, left=False, unitriangular=True)
    while mix.abs().max() > LARGEST_MIX:
        out, into = divmod(int(mix.abs().argmax()), k)
        _swap(mix, out, into)
        rows[[into, k + out]] = rows[[k + out, into]]
    return rows, torch.linalg.solve(frame[rows[:k]], frame[rows[k:]], left=False)


def _swap(mix: Tensor, out: int, into: int) -> None:
    """Update `mix` in place when unchosen row `out` takes the place of chosen row `into`."""
    pivot = mix[out, into].clone()
    row, column = mix[out].clone(), mix[:, into].clone()
    row[into] -= 1.0
    column[out] += 1.0
    mix.addr_(column, row, alpha=-1.0 / float(pivot))
