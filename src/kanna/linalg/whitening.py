"""The best low-rank replacement of a weight under a quadratic error, with one decomposition for all ranks.

A layer computes W x. Replacing W (m, n) by W' of rank k costs, summed over the calibration inputs,
|| D (W - W') R ||_F^2, where R R^T = G = sum x x^T says which inputs occur and D which outputs matter.
By Eckart-Young the optimum projects D W on the leading left singular vectors U of D W R. Those are the
eigenvectors of C = (D W) G (D W)^T, so nothing has to be inverted or Cholesky-factorised: G may be
singular, and the error at rank k is the sum of the eigenvalues left out.

    method      metric
    plain       none
    asvd        G = diag(s^2), s = mean |x|^0.5               (Yuan et al. 2023, arXiv 2312.05821)
    fwsvd       D = diag(sqrt(row sums of the Fisher information))   (Hsu et al. 2022, arXiv 2207.00112)
    whitened    G = sum x x^T; the same optimum as SVD-LLM    (Wang et al. 2024, arXiv 2403.07378)
    anchored    `anchored_target` in place of W, G = sum x^ x^^T of the compressed prefix
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kanna.errors import InputError

# Eigenvalues of a row metric below this fraction of the largest are raised to it: its root is inverted.
METRIC_FLOOR = 1e-12

# Eigenvalues below DEFLATE of the largest are found in a second pass, without those above DOMINANT.
DEFLATE = 1e-12
DOMINANT = 1e-6

# Pivots of a Cholesky factor below this fraction of the largest are not solved with.
_WELL_POSED = 1e-5

# Columns of G multiplied at a time.
BLOCK = 256


@dataclass(frozen=True)
class RowMetric:
    """D, any with D^T D = H: what it is beyond that changes neither the optimum nor its error.

    Attributes:
        root: D, (m,) when it is diagonal; (m, m) upper triangular, or symmetric.
        inverse: D^-1 of the same shape; None for a triangular D, which is solved with.
    """

    root: Tensor
    inverse: Tensor | None

    def undo(self, matrix: Tensor) -> Tensor:
        """D^-1 @ matrix."""
        if self.inverse is None:
            return torch.linalg.solve_triangular(self.root, matrix, upper=True)
        return _left_multiply(self.inverse, matrix)


@dataclass(frozen=True)
class Basis:
    """Output directions of a weight in order of importance: every rank is a prefix.

    Attributes:
        left: (m, q) orthonormal columns, the leading left singular vectors of D W R.
        energy: (r,) float64, descending, >= 0, r = min(m, n): squared singular values of D W R. All of
            them, also when `max_rank` kept fewer columns in `left`.
        total: the error of replacing W by nothing, the sum of `energy`.
        metric: D, or None where outputs weigh the same.
    """

    left: Tensor
    energy: Tensor
    total: float
    metric: RowMetric | None = None

    def tails(self) -> Tensor:
        """Errors at rank 0, 1, ..., r: (r + 1,) float64, not increasing, the last one 0.

        Summed from the small end, so that the error at high rank keeps its digits.
        """
        sums = self.energy.flip(0).cumsum(0).flip(0)
        return torch.cat([sums, sums.new_zeros(1)])


def basis(
    weight: Tensor,
    gram: Tensor | None = None,
    row_metric: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    max_rank: int | None = None,
) -> Basis:
    """Directions minimising || D (W - W') R ||_F for every rank at once.

    A metric of zeros (inputs that never occur, outputs that nobody feels) tells no direction from another:
    the directions are then those of the identity. Without inputs no error is measured: energies are 0.

    Args:
        weight: W (m, n), as in nn.Linear.
        gram: R R^T = sum of x x^T: (n, n) positive semidefinite, (n,) if diagonal, None for the identity.
        row_metric: (m,) the diagonal of D, or (m, m) positive semidefinite D^T D (for instance the sum of
            g g^T over output gradients g); None for the identity. Directions it does not see at all are
            given `METRIC_FLOOR` of its largest eigenvalue.
        dtype: the arithmetic of the decomposition. float32 is about twice as fast and fit for smooth spectra
            only: with four input channels 100 times larger than the others (language models have such) the
            loss at keep 0.9 was 1.4 % above the optimum, at 1000 times 170 %; float64 lost nothing.
        max_rank: how many columns of `left` are wanted; all by default.

    Raises:
        InputError: shapes that do not fit, or numbers that are not finite.
    """
    _check(weight, gram, row_metric)
    outputs, inputs = _told(row_metric, weight, dtype), _told(gram, weight, dtype)
    metric = None if outputs is None else _row_metric(outputs)
    seen = weight.to(dtype)
    seen = seen if metric is None else _left_multiply(metric.root, seen)
    left, energy = _decompose(seen, inputs, max_rank)
    if gram is not None and inputs is None:
        energy = torch.zeros_like(energy)
    return Basis(left, energy, float(energy.flip(0).sum()), metric)


def factors(
    weight: Tensor, basis: Basis, rank: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The pair W' = expand @ reduce of a rank: expand = D^-1 U_k (m, k), reduce = U_k^T D W (k, n).

    Both are computed from W itself, so that no error of the metric's factorisation enters.

    Args:
        weight: the W (or anchored target) that `basis` was made from.
        dtype: of the result; the arithmetic's by default.

    Raises:
        InputError: a rank that `basis` does not hold.
    """
    held = basis.left.shape[1]
    if not 1 <= rank <= held:
        raise InputError(f"rank {rank} was asked of a basis of {held} directions", f"ask for 1 to {held}")
    left = basis.left[:, :rank]
    target = weight.to(left.dtype)
    if basis.metric is None:
        expand, reduce = left, left.T @ target
    else:
        expand = basis.metric.undo(left)
        reduce = left.T @ _left_multiply(basis.metric.root, target)
    return expand.to(dtype or left.dtype).contiguous(), reduce.to(dtype or left.dtype).contiguous()


def is_zero(metric: Tensor, dtype: torch.dtype = torch.float64) -> bool:
    """Whether a metric says nothing: so small in all directions that numbers cannot tell them apart.

    Args:
        metric: (n,) a diagonal, or (n, n) positive semidefinite.
        dtype: of the arithmetic.
    """
    largest = float((metric if metric.ndim == 1 else metric.diagonal()).max())
    return largest <= torch.finfo(dtype).tiny / METRIC_FLOOR


def with_ridge(gram: Tensor, ridge: float) -> Tensor:
    """gram + ridge * mean(diag gram) * I, for (n, n) statistics or an (n,) diagonal."""
    if gram.ndim == 1:
        return gram + ridge * gram.mean()
    ridged = gram.clone()
    ridged.diagonal().add_(ridge * gram.diagonal().mean())
    return ridged


def anchored_target(weight: Tensor, cross: Tensor, gram_hat: Tensor, ridge: float) -> Tensor:
    """The weight that best maps the compressed prefix's inputs x^ onto the original outputs W x.

    W* = W (G_xh + lam I)(G_hh + lam I)^-1 with lam = ridge * mean(diag G_hh), the minimiser of
    ||W X - W* X^||^2 + lam ||W - W*||^2: the ridge pulls to W, not to 0. Then
    `basis(W*, with_ridge(gram_hat, ridge))` gives the low-rank optimum of the same objective.
    (Anchored objective: arXiv 2604.02119; with ridge 0, where G_hh is singular, the solution nearest to W.)

    Args:
        weight: W (m, n).
        cross: G_xh = sum x x^^T (n, n), original times compressed inputs.
        gram_hat: G_hh = sum x^ x^^T (n, n).

    Returns:
        W* (m, n), float64.
    """
    weight, cross, gram_hat = (t.to(weight.device, torch.float64) for t in (weight, cross, gram_hat))
    # As a correction to W: exactly W where the prefix is unchanged, and no cancellation where it nearly is.
    pull = weight @ (cross - gram_hat)
    return weight + _solve_right(pull, with_ridge(gram_hat, ridge))


def balanced(expand: Tensor, reduce: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with columns of `expand` and rows of `reduce` of like size, for training steps.

    Scales are powers of two, so the product keeps every bit as long as nothing over- or underflows.
    """
    sizes = reduce.norm(dim=1) / expand.norm(dim=0)
    scale = torch.exp2(torch.log2(sizes).div(2).round().nan_to_num(0.0, 0.0, 0.0))
    return expand * scale, reduce / scale[:, None]


def _decompose(weight: Tensor, gram: Tensor | None, max_rank: int | None) -> tuple[Tensor, Tensor]:
    """Left singular vectors and squared singular values of W R, by the cheapest exact route per shape.

    Measured on two cores, torch 2.13 with MKL, seconds for float64 at the rank of keep 0.9:
      m <= n   eigenvectors of W G W^T. 4096 x 4096: 8.0 against 17.8 for an SVD of W chol(G); 1024 x 4096:
               0.68 against 3.97. eigh took as long as 5 matrix products of its size, fewer than sign or
               subspace iterations need (counted, not timed). LAPACK's partial driver (scipy, dsyevr for 45 %
               of the vectors, 1024 x 1024, one thread) took 0.44 against 0.25 for torch's complete one.
      m > n    W = Q T first, then the n x n problem of T: 4096 x 1024 0.52, against 0.70 for a root of G by a
               second eigh, and already at 1500 x 1024 0.30 against 0.49 for eigenvectors on the m side.
    """
    m, n = weight.shape
    if m <= n:
        return _leading(weight, gram, max_rank)
    frame, small = torch.linalg.qr(weight)
    inner, energy = _leading(small, gram, max_rank)
    return frame @ inner, energy


def _leading(weight: Tensor, gram: Tensor | None, max_rank: int | None) -> tuple[Tensor, Tensor]:
    wanted = min(len(weight), max_rank or len(weight))
    left, energy = _eigen(_sandwich(weight, gram), wanted)
    if energy[wanted - 1] >= DEFLATE * energy[0]:
        return left, energy
    # Rounding is relative to the largest eigenvalue and would drown the smaller ones: take the dominant
    # directions out of W, where that is exact, and decompose what remains on its own scale.
    head = left[:, : int((energy > DOMINANT * energy[0]).sum())]
    count = head.shape[1]
    rest, lower = _eigen(_sandwich(weight - head @ (head.T @ weight), gram), wanted)
    left = torch.linalg.qr(torch.cat([head, rest[:, : wanted - count]], dim=1)).Q
    return left, torch.cat([energy[:count], lower[: len(lower) - count]]).cummin(0).values


def _eigen(covariance: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The leading `wanted` eigenvectors, and all eigenvalues in float64, descending and >= 0."""
    if not torch.isfinite(covariance).all():
        raise InputError(
            "the weight or its input statistics hold NaN or infinite numbers",
            "check the checkpoint and the calibration run for overflow",
        )
    values, vectors = torch.linalg.eigh(covariance)
    return vectors[:, len(values) - wanted :].flip(1), values.double().clamp_min(0.0).flip(0)


def _sandwich(weight: Tensor, gram: Tensor | None) -> Tensor:
    """W G W^T, symmetric to the last bit."""
    if gram is None:
        half = weight / 2
    else:
        half = weight * (gram / 2) if gram.ndim == 1 else _times_half(weight, gram)
    product = half @ weight.T
    return product + product.T


def _times_half(weight: Tensor, gram: Tensor) -> Tensor:
    """W T for the upper triangular T with T + T^T = G: half the multiplications of W G.

    This product, not the eigenvectors, is the larger part of the work for wide matrices.
    """
    product = torch.empty_like(weight)
    for start in range(0, len(gram), BLOCK):
        end = min(start + BLOCK, len(gram))
        column = gram[:end, start:end].triu(-start)
        column[start:].diagonal().div_(2)
        torch.mm(weight[:, :end], column, out=product[:, start:end])
    return product


def _row_metric(metric: Tensor) -> RowMetric:
    if metric.ndim == 1:
        root = metric.clamp_min(float(metric.max()) * METRIC_FLOOR**0.5)
        return RowMetric(root, root.reciprocal())
    lower, failed = torch.linalg.cholesky_ex(metric)
    pivots = lower.diagonal()
    if not failed and bool(pivots.min() > pivots.max() * _WELL_POSED):
        # A fraction of the work of eigenvectors.
        return RowMetric(lower.mT, None)
    values, vectors = torch.linalg.eigh((metric + metric.T) / 2)
    root = values.clamp_min(float(values.max()) * METRIC_FLOOR).sqrt()
    return RowMetric((vectors * root) @ vectors.T, (vectors / root) @ vectors.T)


def _told(metric: Tensor | None, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The metric where the weight is, in `dtype`; None where it is none or says nothing."""
    told = None if metric is None else metric.to(weight.device, dtype)
    return None if told is None or is_zero(told, dtype) else told


def _left_multiply(factor: Tensor, matrix: Tensor) -> Tensor:
    """D @ matrix, for the diagonal of D or for D itself."""
    return factor[:, None] * matrix if factor.ndim == 1 else factor @ matrix


def _solve_right(right_side: Tensor, gram: Tensor) -> Tensor:
    """right_side @ gram^-1 for positive definite `gram`; its pseudo-inverse where it is singular."""
    lower, failed = torch.linalg.cholesky_ex(gram)
    pivots = lower.diagonal()
    if not failed and bool(pivots.min() > pivots.max() * 1e-7):
        return torch.cholesky_solve(right_side.T, lower).T
    values, vectors = torch.linalg.eigh(gram)
    seen = values > values.max() * len(gram) * torch.finfo(gram.dtype).eps
    inverse = torch.where(seen, values.reciprocal(), 0.0)
    return (right_side @ vectors * inverse) @ vectors.T


def _check(weight: Tensor, gram: Tensor | None, row_metric: Tensor | None) -> None:
    if weight.ndim != 2 or 0 in weight.shape:
        raise InputError(f"expected a weight of shape (m, n), got {tuple(weight.shape)}")
    m, n = weight.shape
    for name, metric, side in (("gram", gram, n), ("row_metric", row_metric, m)):
        if metric is not None and tuple(metric.shape) not in ((side,), (side, side)):
            raise InputError(
                f"{name} of a weight {m} x {n} must have shape ({side},) or ({side}, {side}), "
                f"got {tuple(metric.shape)}",
                "pass the statistics collected for this matrix",
            )
