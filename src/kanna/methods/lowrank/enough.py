"""What a larger budget would leave of the error, by the curves of a run that has been made."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from kanna.linalg.allocation import Ranks
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.plan import Plan
from kanna.methods.lowrank.ranks import allocate, highest_rank
from kanna.models.matrix import Matrix

_HOW = (
    "predicted, not measured: what a score loses is taken to fall with the error that this run's curves "
    "give, which must fall to {share} of what it is"
)


def enough(plan: Plan, energies: Mapping[str, Tensor], ranks: Ranks, share: float) -> str | None:
    """The smallest budget that leaves at most `share` of this run's error, in words.

    Args:
        plan: What was done.
        energies: Of the matrices that were looked at: (r,) float64 energy of each direction, as ranks were
            shared out by.
        ranks: What was written; None for a matrix that stayed.

    Returns:
        None where there are no curves, or where they see no error.
    """
    now = _error(ranks, energies)
    if now <= 0:
        return None
    looked_at = [matrix for matrix in plan.selected if matrix.name in energies]
    name, budgets = _budgets(plan, looked_at)
    left = _left_at(plan, looked_at, energies)
    low, high = 0, len(budgets)
    while low < high:
        middle = (low + high) // 2
        if left(plan.config.model_copy(update={name: budgets[middle]})) <= share * now:
            high = middle
        else:
            low = middle + 1
    how = _HOW.format(share=_percent(share))
    if low == len(budgets):
        return f"no --{name} that makes the model smaller is enough ({how})"
    chosen = f"{budgets[low]:.2f}" if name == "keep" else str(budgets[low])
    return f"--{name} {chosen} is the smallest that would pass ({how})"


def _budgets(plan: Plan, looked_at: Sequence[Matrix]) -> tuple[str, list[float] | list[int]]:
    """The setting that says how much is kept, and larger values of it that can be had, ascending."""
    config = plan.config
    if config.rank is not None:
        most = max(highest_rank(matrix, config, plan.stored[matrix.name]) for matrix in looked_at)
        return "rank", list(range(config.rank + 1, most + 1))
    assert config.keep is not None
    below = int(100 * config.keep + 1e-9)  # 0.29 is 28.999... per cent
    return "keep", [percent / 100 for percent in range(below + 1, 100)]


def _left_at(
    plan: Plan, looked_at: Sequence[Matrix], energies: Mapping[str, Tensor]
) -> Callable[[LowRankConfig], float]:
    stored = {matrix.name: plan.stored[matrix.name] for matrix in looked_at}
    return lambda config: _error(allocate(looked_at, energies, config, stored), energies)


def _percent(share: float) -> str:
    """Two digits, which never become powers of ten."""
    if 0 < share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _error(ranks: Ranks, energies: Mapping[str, Tensor]) -> float:
    """Energy of the directions that are left out, over all matrices."""
    return sum(
        float(energies[name][rank:].sum())
        for name, rank in ranks.items()
        if rank is not None and name in energies
    )
