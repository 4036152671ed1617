"""Whether a correlation changed: the difference of two, of the same rows, on Fisher's scale.

There the spread hardly depends on the correlation; on its own scale it does, and a model that is better by
chance looks surer of it. The spread is that of the rows' jackknife values.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kanna.tasks.verdict.statistics import Floats, over, solve

# atanh of 1 is infinite.
_MOST = 1 - 1e-12


@dataclass(frozen=True)
class Correlations:
    """Of two models.

    Args:
        base: (rows,) values whose mean is the correlation.
        new: The same of the other model.
        groups: (rows,) group numbers from 0.
    """

    base: Floats
    new: Floats
    groups: NDArray[np.int64]

    def score(self, change: float, relative: bool) -> float:
        """z of the test that new is base and `change`; positive where it is more.

        Args:
            relative: `change` is a share of the base's correlation, whose error then counts by as much.
        """
        base, new = float(self.base.mean()), float(self.new.mean())
        slope = 1 + change / base if relative and base != 0 else 1.0
        wanted = slope * base if slope != 1.0 else base + change
        new, wanted = (max(-_MOST, min(_MOST, one)) for one in (new, wanted))
        values = self.new / (1 - new**2) - slope * self.base / (1 - wanted**2)
        sums = np.bincount(self.groups, weights=values - values.mean())
        variance = float((sums**2).sum()) * len(sums) / max(1, len(sums) - 1) / len(values) ** 2
        return over(math.atanh(new) - math.atanh(wanted), variance)

    def bound(self, z: float, relative: bool) -> float:
        """The change at which `score` is z: a lower bound for z > 0, an upper one for z < 0."""
        base = float(self.base.mean())
        return solve(lambda change: self.score(change, relative), z, -1 - base, 1 - base)
