"""How much a search tries."""

from pydantic import BaseModel, ConfigDict

# Below it, a round of halving would throw dice.
_FEWEST_ROWS = 8


class Budget(BaseModel):
    """How much is tried.

    Args:
        fast: Examples for the gradient; None tries every candidate on every row.
        shortlist: Candidates that the gradient leaves.
        finalists: Candidates that meet on all validation rows.
        max_evaluations: Candidates tried at most; the first ones of the space.
        max_seconds: No further block is begun after so many; what was not reached is reported.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    fast: int | None = 100
    shortlist: int = 16
    finalists: int = 4
    max_evaluations: int | None = None
    max_seconds: float | None = None

    def part_sizes(self) -> list[int]:
        """Rows at which parts of the validation set end, before the last one."""
        if self.fast is None:
            return []
        sizes = [max(_FEWEST_ROWS, self.fast // 4)]
        while sizes[-1] * 2 < self.fast:
            sizes.append(sizes[-1] * 2)
        return [*sizes, self.fast] if sizes[-1] < self.fast else sizes
