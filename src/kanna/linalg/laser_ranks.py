"""From what a user says about a rank to the rank."""

import math
from decimal import ROUND_FLOOR, Decimal, InvalidOperation

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.spectra import signal_rank

_RULES = {"mp": "marchenko-pastur", "gd": "gavish-donoho"}
# The interquartile range of a normal variable of standard deviation 1.
_NORMAL_IQR = 1.349


def rank_of(rho: float | str, rows: int, columns: int) -> int:
    """k = floor(rho min(m, n)), rho taken as the decimal it is written as: 0.29 of 100 is 29.

    Raises:
        InputError: rho is no number in 0 to 1.
    """
    try:
        share = Decimal(str(rho))
    except InvalidOperation:
        share = Decimal("NaN")
    if not share.is_finite() or not 0 <= share <= 1:
        raise InputError(f"rho {rho} is no number from 0 to 1", "it is the share of the largest rank kept")
    return int((share * min(rows, columns)).to_integral_value(rounding=ROUND_FLOOR))


def automatic_rank(values: Tensor, rows: int, columns: int, rule: str) -> int:
    """How many singular values stand above noise.

    Args:
        values: All min(rows, columns) of them.
        rule: mp (Marchenko-Pastur edge), gd (Gavish-Donoho threshold), both with the noise estimated from the
            median, or laserrmt, the published code's threshold, which is neither and keeps pure noise.
    """
    if rule == "laserrmt":
        return int((values > laserrmt_threshold(values, rows, columns)).sum())
    if rule not in _RULES:
        raise InputError(f"there is no rule {rule!r}", "choose mp, gd or laserrmt")
    return signal_rank(values, rows, columns, rule=_RULES[rule])


def laserrmt_threshold(values: Tensor, rows: int, columns: int) -> float:
    """IQR of the singular values / 1.349, times 1 + sqrt(min / max), as laserRMT computes it."""
    quartiles = torch.quantile(values.double(), torch.tensor([0.25, 0.75], dtype=torch.float64))
    spread = float(quartiles[1] - quartiles[0]) / _NORMAL_IQR
    return spread * (1 + math.sqrt(min(rows, columns) / max(rows, columns)))


def signal_to_noise(values: Tensor, threshold: float) -> float:
    """Sum of the singular values above the threshold over that of the others; infinite without others."""
    above = values > threshold
    noise = float(values[~above].sum())
    return float(values[above].sum()) / noise if noise else math.inf
