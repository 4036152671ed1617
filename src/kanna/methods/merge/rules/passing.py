"""One model as it is, or times a number."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Passthrough:
    """scale x.

    Args:
        scale: 1 for the values as they are.
    """

    kept = (0, 0)
    looks = 0

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        raise AssertionError("a copy needs no look at the whole tensor")

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        (values,) = chunk
        return values if self._scale == 1 else values.mul_(self._scale)
