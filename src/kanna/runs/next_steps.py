"""What to do after a fail: how much less must be lost, and which matrices do most of the harm."""

import math
from collections.abc import Sequence
from pathlib import Path

from kanna.checkpoint import lineage
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.tasks.verdict.comparison import Blame, Comparison
from kanna.tasks.verdict.tolerance import PASS, Decision

# Matrices to leave out at most, each of which repairs at least this share of what the best one does.
_MOST, _LEAST_SHARE = 3, 0.5


def share_that_passes(compared: Comparison) -> float | None:
    """Which share of the error may stay for every task to pass, predicted; None where nothing was lost.

    The change of a score is taken to shrink in proportion to the error, and the width of its interval with
    the root of it, as counts of flipped answers do.
    """
    shares = [
        _share(task.decision, task.higher_is_better)
        for task in compared.tasks
        if task.decision is not None and task.decision.status != PASS
    ]
    return min(shares, default=None)


def _share(decision: Decision, higher_is_better: bool) -> float:
    """The largest r with r change + sqrt(r) width = allowed, all counted as loss; 0 to 1."""
    worse = -1.0 if higher_is_better else 1.0
    allowed, lost = abs(decision.allowed), worse * decision.difference
    width = max(0.0, worse * (decision.bound - decision.difference))
    if lost <= 0:
        root = allowed / width if width > 0 else 1.0
    else:
        root = (math.sqrt(width**2 + 4 * lost * allowed) - width) / (2 * lost)
    return min(1.0, root) ** 2


def without_the_worst(blamed: Sequence[Blame], lost: int, inventory: Inventory, new: Path) -> str | None:
    """Which matrices to leave out, as putting them back showed; None where no single one repairs anything.

    Args:
        lost: Answers that were asked again and were right before.
        inventory: Of the base.
        new: Directory of the model that was judged, whose lineage says what was selected.
    """
    by_module: dict[str, list[Matrix]] = {}
    for matrix in inventory.matrices:
        by_module.setdefault(matrix.module, []).append(matrix)
    found = [one for one in blamed if one.repaired > 0 and one.matrix in by_module]
    if not found:
        return None
    best = [one for one in found if one.repaired >= _LEAST_SHARE * found[0].repaired][:_MOST]
    places = [f"!{matrix.role}@{matrix.layer}" for one in best for matrix in by_module[one.matrix]]
    repaired = ", ".join(f"{one.repaired} by {one.matrix}" for one in best)
    return (
        f"leave out what does the harm: --select '{','.join([_selected(new), *places])}' (put back alone, of "
        f"{lost} lost answers {repaired} came right again)"
    )


def _selected(new: Path) -> str:
    """What the last step was told to take, where that can be gone on with."""
    recorded = lineage.read(new)
    said = recorded.steps[-1].config.get("select") if recorded is not None and recorded.steps else None
    return said if isinstance(said, str) and said and not said.startswith("re:") else "all"
