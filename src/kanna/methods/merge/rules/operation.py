"""What the arithmetic of one tensor is, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Operation(Protocol):
    """Merges one tensor, whose values come in chunks, in order.

    Chunks are flat, in float32 or float64, one for each model; an operation may write into them.
    """

    @property
    def looks(self) -> int:
        """How many passes over the tensor it needs before its values can be merged."""

    def look(self, number: int, chunk: Sequence[Tensor]) -> None:
        """See a chunk before anything is merged; `number` counts the passes over the tensor from 0."""

    def merged(self, chunk: Sequence[Tensor]) -> Tensor:
        """The values of a chunk, not rounded yet; called in order, after all passes."""

    @property
    def kept(self) -> tuple[int, int]:
        """Entries of differences that went in, and how many there were."""
