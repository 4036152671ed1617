"""What conflicts of blocks have in common, however they were found: ranks, who is hurt, and which kind."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

SEVERE, PARTIAL, MUTUAL = "severe", "partial", "mutual"


class Ranked(ABC):
    """The conflict of one block."""

    @property
    @abstractmethod
    def place(self) -> int:
        """The number of the block."""

    @property
    @abstractmethod
    def gamma(self) -> tuple[float, ...]:
        """Of each expert: how much of it is lost in the block of the merge."""

    @property
    @abstractmethod
    def errors(self) -> tuple[float, ...]:
        """Their standard errors."""

    @property
    @abstractmethod
    def strongest(self) -> int:
        """The expert to which the block matters most, of all that it is."""

    @property
    def total(self) -> float:
        """Gamma of the block, by which blocks are ranked."""
        return math.fsum(self.gamma)

    @property
    def total_error(self) -> float:
        return math.sqrt(math.fsum(one * one for one in self.errors))

    def hurt(self, tau: float | None) -> tuple[bool, ...]:
        """Experts of which the merge has less than they have.

        Args:
            tau: How much less; None for one standard error.
        """
        bounds = self.errors if tau is None else (tau,) * len(self.gamma)
        return tuple(gamma > bound for gamma, bound in zip(self.gamma, bounds, strict=True))

    def kind(self, tau: float | None) -> str:
        hurt = self.hurt(tau)
        return SEVERE if all(hurt) else PARTIAL if any(hurt) else MUTUAL
