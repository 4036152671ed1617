"""What to do after a fail: how much less must be lost, and which matrices do most of the harm."""

import math
from collections.abc import Sequence
from pathlib import Path

from kanna.checkpoint import lineage
from kanna.errors import InputError
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.models.selection import select
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


def without_the_worst(
    blamed: Sequence[Blame], lost: int, inventory: Inventory, base: Path, new: Path
) -> str | None:
    """Which matrices to leave out, as putting them back showed.

    Where one step with a selection by roles lies between the two, it is that selection without them; where
    several do, or a pattern chose the matrices, they are named alone.

    Args:
        lost: Answers that were asked again and were right before.
        inventory: Of the base.
        base: Its directory.
        new: Directory of the model that was judged, whose lineage says what was selected.

    Returns:
        None where no single matrix repairs anything, and where nothing was selected in between.

    Raises:
        InputError: A lineage is damaged.
    """
    by_module: dict[str, list[Matrix]] = {}
    for matrix in inventory.matrices:
        by_module.setdefault(matrix.module, []).append(matrix)
    found = [one for one in blamed if one.repaired > 0 and one.matrix in by_module]
    selections = _selections(base, new)
    if not found or not any(selections):
        return None
    best = [one for one in found if one.repaired >= _LEAST_SHARE * found[0].repaired][:_MOST]
    places = [f"!{matrix.role}@{matrix.layer}" for one in best for matrix in by_module[one.matrix]]
    narrowed = None if len(selections) > 1 else _narrowed(selections[0], places, inventory)
    what = ", ".join(one.matrix for one in best) if narrowed is None else f"--select '{narrowed}'"
    repaired = ", ".join(f"{one.repaired} by {one.matrix}" for one in best)
    return (
        f"leave out what does the harm: {what} (put back alone, of {lost} lost answers {repaired} came right "
        "again)"
    )


def _selections(base: Path, new: Path) -> list[str]:
    """What each step between two models was told to take; empty for a step that is told no such thing."""
    first, last = (found.steps if (found := lineage.read(path)) else () for path in (base, new))
    between = last[len(first) :] if last[: len(first)] == first else last
    said = (step.config.get("select") for step in between)
    return [one if isinstance(one, str) else "" for one in said]


def _narrowed(selection: str, places: Sequence[str], inventory: Inventory) -> str | None:
    """A selection without some places; None where that cannot be written or leaves nothing."""
    if selection.startswith("re:"):
        return None
    narrowed = ",".join([selection, *places])
    try:
        select(inventory.matrices, narrowed)
    except InputError:
        return None
    return narrowed
