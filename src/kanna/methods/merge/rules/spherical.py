"""Interpolation along the arc between two tensors, each seen as one vector (Shoemake 1985).

With the angle theta between x and y: (sin((1 - t) theta) x + sin(t theta) y) / sin(theta), on the vectors as
they are, so that lengths are interpolated, too. Nearly parallel vectors have no arc to go along: there it is
(1 - t) x + t y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kanna.methods.merge.rules.sums import added

# Cosines beyond which vectors count as parallel, as mergekit has them.
SLERP_PARALLEL = 0.9995
NUSLERP_PARALLEL = 1 - 1e-8


class Spherical:
    """From x (t = 0) to y (t = 1).

    Args:
        first: Index of x.
        second: Index of y.
        base: Index of the model from which differences are taken, which are interpolated in place of the
            models and added to it; -1 for the models themselves.
        t: How far.
        parallel: The size of a cosine from which on vectors are mixed in a straight line.
    """

    kept = (0, 0)
    looks = 1

    def __init__(self, first: int, second: int, base: int, t: float, parallel: float) -> None:
        self._first, self._second, self._base = first, second, base
        self._t, self._parallel = t, parallel
        self._xx = self._yy = self._xy = 0.0

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        x, y = self._vectors(chunk)
        self._xx, self._yy = added(self._xx, x, x), added(self._yy, y, y)
        self._xy = added(self._xy, x, y)

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        x, y = self._vectors(chunk)
        shares = self._shares()
        # A straight line between equal models gives them, bit for bit.
        result = torch.lerp(x, y, self._t) if shares is None else x * shares[0] + y * shares[1]
        return result if self._base < 0 else result + chunk[self._base]

    def _vectors(self, chunk: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x, y = chunk[self._first], chunk[self._second]
        return (x, y) if self._base < 0 else (x - chunk[self._base], y - chunk[self._base])

    def _shares(self) -> tuple[float, float] | None:
        """What x and y are multiplied by; None where they are parallel.

        A vector of zeros has a right angle to all others.
        """
        size = math.sqrt(self._xx) * math.sqrt(self._yy)
        cosine = self._xy / size if size else 0.0
        if abs(cosine) > self._parallel:
            return None
        angle = math.acos(cosine)
        near, far = math.sin((1 - self._t) * angle), math.sin(self._t * angle)
        return near / math.sin(angle), far / math.sin(angle)
