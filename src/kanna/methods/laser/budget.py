"""How much a search tries."""

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

from kanna.configuration import setting

# Below it, a round of halving would throw dice.
_FEWEST_ROWS = 8
_HOW: JsonDict = {"group": "Search"}


class Budget(BaseModel):
    """How much is tried."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    fast: int | None = setting(
        100, "Examples for the gradient; None tries every candidate on every row.", _HOW, ge=_FEWEST_ROWS
    )
    shortlist: int = setting(16, "Candidates that the gradient leaves.", _HOW, ge=1)
    finalists: int = setting(4, "Candidates that meet on all validation rows.", {"flag": None})
    max_evaluations: int | None = setting(
        None, "Candidates tried at most; the first ones of the space.", _HOW, ge=1
    )
    max_seconds: float | None = setting(None, "No further block is begun after so many.", {"flag": None})

    def part_sizes(self) -> list[int]:
        """Rows at which parts of the validation set end, before the last one."""
        if self.fast is None:
            return []
        sizes = [max(_FEWEST_ROWS, self.fast // 4)]
        while sizes[-1] * 2 < self.fast:
            sizes.append(sizes[-1] * 2)
        return [*sizes, self.fast] if sizes[-1] < self.fast else sizes
