"""What a larger budget would leave of the error, by the curves of a run that has been made."""

from collections.abc import Callable, Mapping

from torch import Tensor

from kanna.linalg.allocation import Ranks
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.plan import Plan
from kanna.methods.lowrank.ranks import allocate

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
    name, budgets = _budgets(plan)
    left = _left_at(plan, energies)
    low, high = 0, len(budgets)
    while low < high:
        middle = (low + high) // 2
        if left(plan.config.model_copy(update={name: budgets[middle]})) <= share * now:
            high = middle
        else:
            low = middle + 1
    how = _HOW.format(share=f"{100 * share:.2g} %")
    if low == len(budgets):
        return f"no --{name} that makes the model smaller is enough ({how})"
    chosen = f"{budgets[low]:.2f}" if name == "keep" else str(budgets[low])
    return f"--{name} {chosen} is the smallest that would pass ({how})"


def _budgets(plan: Plan) -> tuple[str, list[float] | list[int]]:
    """The setting that says how much is kept, and larger values of it, ascending."""
    config = plan.config
    if config.rank is not None:
        most = max(matrix.break_even_rank for matrix in plan.selected)
        return "rank", list(range(config.rank + 1, most + 1))
    assert config.keep is not None
    return "keep", [percent / 100 for percent in range(int(100 * config.keep) + 1, 100)]


def _left_at(plan: Plan, energies: Mapping[str, Tensor]) -> Callable[[LowRankConfig], float]:
    looked_at = [matrix for matrix in plan.selected if matrix.name in energies]
    stored = {matrix.name: plan.stored[matrix.name] for matrix in looked_at}
    return lambda config: _error(allocate(looked_at, energies, config, stored), energies)


def _error(ranks: Ranks, energies: Mapping[str, Tensor]) -> float:
    """Energy of the directions that are left out, over all matrices."""
    return sum(
        float(energies[name][rank:].sum())
        for name, rank in ranks.items()
        if rank is not None and name in energies
    )
