"""What a spectrum says: how many singular values matter, and which could be noise."""

import math

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """All min(m, n) singular values of a finite matrix (m, n), descending, float64.

    From the eigenvalues of the smaller Gram matrix: several times faster than an SVD, and exact to about
    1e-8 of the largest, which entropies, energies and pictures do not see.
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp_min(0).sqrt().flip(0)


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007). 0 for a zero matrix.

    Args:
        singular_values: (r,) non-negative, any order.
    """
    values = singular_values.double()
    total = values.sum()
    if total <= 0:
        return 0.0
    share = values / total
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def stable_rank(singular_values: Tensor) -> float:
    """||W||_F^2 / ||W||_2^2, at most the rank and little moved by small singular values."""
    energy = singular_values.double().square()
    return float(energy.sum() / energy.max()) if energy.max() > 0 else 0.0


def energy_rank(singular_values: Tensor, share: float) -> int:
    """The smallest rank that holds `share` (in (0, 1]) of the sum of squared singular values."""
    energy = singular_values.double().square().sort(descending=True).values
    # Measured by what is left out, summed from the small end: 1 - share is then met to rounding.
    left_out = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return int((left_out > (1.0 - share) * left_out[0]).sum())


def marchenko_pastur_edge(rows: int, columns: int, noise: float) -> float:
    """The largest singular value expected of a (rows, columns) matrix of independent entries of
    standard deviation `noise`: noise (sqrt(rows) + sqrt(columns)) (Marchenko and Pastur 1967).
    """
    return noise * (math.sqrt(rows) + math.sqrt(columns))


def gavish_donoho_threshold(rows: int, columns: int, noise: float) -> float:
    """The optimal hard threshold for singular values under white noise of known standard deviation.

    Gavish and Donoho 2014 (arXiv 1305.5870), eq. 11; lambda*(1) = 4/sqrt(3). It lies above the
    Marchenko-Pastur edge: components below it are better dropped even where they are not pure noise.
    """
    aspect = _aspect(rows, columns)
    inner = aspect + 1 + math.sqrt(aspect * aspect + 14 * aspect + 1)
    return math.sqrt(2 * (aspect + 1) + 8 * aspect / inner) * math.sqrt(max(rows, columns)) * noise


def estimate_noise(singular_values: Tensor, rows: int, columns: int) -> float:
    """Standard deviation of the noise if at least half of the singular values are noise.

    The median singular value over that of pure noise (Gavish and Donoho 2014, section III.D).
    """
    median = float(singular_values.double().quantile(0.5))
    return median / math.sqrt(max(rows, columns) * _median_of_noise(_aspect(rows, columns)))


def signal_rank(
    singular_values: Tensor, rows: int, columns: int, noise: float | None = None, rule: str = "gavish-donoho"
) -> int:
    """How many singular values stand above the noise.

    Args:
        singular_values: all min(rows, columns) of them.
        noise: its standard deviation per entry; estimated from the median where None.
        rule: "gavish-donoho" (what is worth keeping) or "marchenko-pastur" (what exceeds pure noise).
    """
    level = estimate_noise(singular_values, rows, columns) if noise is None else noise
    threshold = gavish_donoho_threshold if rule == "gavish-donoho" else marchenko_pastur_edge
    return int((singular_values > threshold(rows, columns, level)).sum())


def _aspect(rows: int, columns: int) -> float:
    return min(rows, columns) / max(rows, columns)


def _median_of_noise(aspect: float) -> float:
    """Median of the Marchenko-Pastur law of the eigenvalues of noise with variance 1 / max(rows, columns).

    The density's square-root ends vanish under x = centre + radius * cos(angle), where the trapezoid rule
    converges fast.
    """
    points = 20_001
    centre, radius = 1 + aspect, 2 * math.sqrt(aspect)
    angle = torch.linspace(math.pi, 0, points, dtype=torch.float64)
    x = centre + radius * torch.cos(angle)
    # The lower edge of a square matrix is 0, where the transformed density stays finite.
    density = radius**2 * torch.sin(angle).square() / x.clamp_min(1e-300)
    density[x <= 1e-15] = 2 * density[1] - density[2]
    mass = torch.cumulative_trapezoid(density, dx=math.pi / (points - 1))
    index = int(torch.searchsorted(mass, mass[-1] / 2))
    return float((x[index] + x[index + 1]) / 2)
