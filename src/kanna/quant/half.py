"""What becomes of scales in float16, which is what most formats hold."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Halved:
    """What rounding scales to float16 did.

    Args:
        scales: How many there are.
        rounded: Of them, how many changed.
        vanished: How many became 0.
        overflowed: How many are too large for it.
        largest: The largest relative change of one that neither vanished nor overflowed.
    """

    scales: int = 0
    rounded: int = 0
    vanished: int = 0
    overflowed: int = 0
    largest: float = 0.0

    def __add__(self, other: "Halved") -> "Halved":
        return Halved(
            self.scales + other.scales,
            self.rounded + other.rounded,
            self.vanished + other.vanished,
            self.overflowed + other.overflowed,
            max(self.largest, other.largest),
        )


def halved(scale: Tensor) -> Halved:
    """What float16 makes of these."""
    exact, half = scale.double(), scale.half().double()
    overflowed, vanished = half.isinf(), (half == 0) & (exact != 0)
    changed = (half - exact).abs() / exact.abs().clamp_min(torch.finfo(torch.float64).tiny)
    kept = changed[~(overflowed | vanished)]
    largest = float(kept.max()) if kept.numel() else 0.0
    return Halved(
        exact.numel(), int((half != exact).sum()), int(vanished.sum()), int(overflowed.sum()), largest
    )
