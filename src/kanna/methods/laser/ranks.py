"""From what a user says about a rank to the rank."""

import math
from decimal import ROUND_FLOOR, Decimal, InvalidOperation, localcontext

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.linalg.reduction import row_blocks
from kanna.linalg.spectra import signal_rank

_RULES = {"mp": "marchenko-pastur", "gd": "gavish-donoho"}
# The interquartile range of a normal variable of standard deviation 1.
_NORMAL_IQR = 1.349


def rank_of(rho: float | str, rows: int, columns: int) -> int:
    """k = floor(rho min(m, n)), rho taken as the decimal it is written as: 0.29 of 100 is 29.

    A rho above 0 may well mean rank 0; what to say then is up to the caller.

    Raises:
        InputError: rho is no number from 0 to 1.
    """
    try:
        share = Decimal(str(rho))
    except InvalidOperation:
        share = Decimal("NaN")
    if not share.is_finite() or not 0 <= share <= 1:
        raise InputError(f"rho {rho} is no number from 0 to 1", "it is the share of the largest rank kept")
    with localcontext(rounding=ROUND_FLOOR):
        return int(share * min(rows, columns))


def block_ranks(rho: float | str, rows: int, columns: int, blocks: int) -> list[int]:
    """`rank_of` for each of the row blocks that `reduction.row_blocks` cuts a matrix into."""
    return [rank_of(rho, block.stop - block.start, columns) for block in row_blocks(rows, blocks)]


def automatic_rank(values: Tensor, rows: int, columns: int, rule: str) -> int:
    """How many singular values stand above noise.

    Args:
        values: (min(rows, columns),) all singular values.
        rule: mp (Marchenko-Pastur edge) or gd (Gavish-Donoho threshold), both with the noise estimated from
            the median singular value, so good as long as half of them are noise; or laserrmt, the published
            code's threshold, which is neither of these and keeps a quarter and more of pure noise.

    Raises:
        InputError: An unknown rule.
    """
    if rule == "laserrmt":
        return int((values > laserrmt_threshold(values, rows, columns)).sum())
    if rule not in _RULES:
        raise InputError(f"there is no rule {rule!r}", "choose mp, gd or laserrmt")
    return signal_rank(values, rows, columns, rule=_RULES[rule])


def laserrmt_threshold(values: Tensor, rows: int, columns: int) -> float:
    """IQR(S) / 1.349 (1 + sqrt(min / max)), as laserRMT and Spectrum compute it.

    Named after Marchenko and Pastur there, but the spread of the singular values is not that of the entries,
    and a factor sqrt(max(m, n)) is missing.
    """
    quartiles = torch.quantile(values.double(), values.new_tensor([0.25, 0.75], dtype=torch.float64))
    spread = float(quartiles[1] - quartiles[0]) / _NORMAL_IQR
    return spread * (1 + math.sqrt(min(rows, columns) / max(rows, columns)))


def signal_to_noise(values: Tensor, threshold: float) -> float:
    """Sum of the singular values above the threshold over that of the others.

    Infinite where the others sum to 0, but 0 for a matrix that is zero.
    """
    above = values > threshold
    signal, noise = float(values[above].sum()), float(values[~above].sum())
    if noise == 0:
        return math.inf if signal > 0 else 0.0
    return signal / noise
