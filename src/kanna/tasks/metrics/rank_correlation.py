"""Spearman's correlation, and what each row adds to it.

A correlation is no mean over rows, and verdicts are about means. The jackknife makes it one: leaving out a
row changes it by so much, and values made of these changes have the correlation as their mean and its spread
as theirs (Efron and Tibshirani 1993, ch. 11). Rows that are drawn together stay together in them.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_AT_A_TIME = 2**22


def spearman(first: Floats, second: Floats) -> float:
    """Of two (rows,) samples; equal values share the mean of their ranks. 0 where one is constant."""
    ranks = [midranks(one) - (len(first) + 1) / 2 for one in (first, second)]
    return float(_correlation(*ranks))


def pearson(first: Floats, second: Floats) -> float:
    """The correlation of the values themselves; 0 where one is constant."""
    return float(_correlation(first - first.mean(), second - second.mean()))


def jackknifed(first: Floats, second: Floats) -> Floats:
    """(rows,) values whose mean is Spearman's correlation: it, less what leaving the row out would add."""
    whole, rows = spearman(first, second), len(first)
    without = np.concatenate([_without(first, second, some) for some in _parts(rows)])
    return whole + (rows - 1) * (without.mean() - without)


def midranks(values: Floats) -> Floats:
    """(rows,) ranks from 1."""
    ordered = np.sort(values)
    below, up_to = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (below + up_to + 1) / 2


def _parts(rows: int) -> list[NDArray[np.int64]]:
    size = max(1, _AT_A_TIME // rows)
    return [np.arange(start, min(start + size, rows)) for start in range(0, rows, size)]


def _without(first: Floats, second: Floats, left_out: NDArray[np.int64]) -> Floats:
    """The correlation without each of these rows: ranks above it fall by one, equal ones by a half."""
    centred = []
    for values in (first, second):
        gone = values[left_out, None]
        ranks = midranks(values) - (gone < values) - 0.5 * (gone == values) - len(values) / 2
        ranks[np.arange(len(left_out)), left_out] = 0.0
        centred.append(ranks)
    return _correlation(*centred)


def _correlation(first: Floats, second: Floats) -> Floats:
    """Along the last axis, of what has a mean of 0."""
    spread = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    together = (first * second).sum(-1)
    found: Floats = np.divide(together, spread, out=np.zeros_like(together), where=spread > 0)
    return found
