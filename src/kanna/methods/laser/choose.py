"""Which of the edits tried is taken.

The published rule takes the highest validation accuracy, ties by log loss, and never the model as it is. The
constrained rule lets the model as it is take part and win ties, and refuses an edit that is less consistent
over paraphrases or whose perplexity of plain text rises by more than is allowed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

PUBLISHED, CONSTRAINED = "published", "constrained"


@dataclass(frozen=True)
class Trial:
    """An edit and what it scored on the validation rows.

    Args:
        edit: As `parse_edit` reads it; empty for the model as it is.
        layer: Of the block; -1 for the model as it is.
        role: Of the matrix; empty likewise.
        matrix: Its name; empty likewise.
        rho: As given.
        rank: What it means.
        blocks: Row blocks that were truncated each on its own.
        rows: Validation rows it was scored on.
        accuracy: The headline metric, where more is better.
        log_loss: Of the right answers, nats per row.
        consistency: Share of facts of which all wordings are right; None without groups.
        perplexity: Of plain text; None where it was not measured.
    """

    edit: str
    layer: int
    role: str
    matrix: str
    rho: str
    rank: int
    blocks: int
    rows: int
    accuracy: float
    log_loss: float
    consistency: float | None = None
    perplexity: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Measure = Callable[[Trial], float]


def by_accuracy(trials: Iterable[Trial]) -> list[Trial]:
    """The most accurate first, ties by the smaller log loss, then by order."""
    return sorted(trials, key=lambda one: (-one.accuracy, one.log_loss))


def choose(
    base: Trial,
    trials: Sequence[Trial],
    rule: str = CONSTRAINED,
    max_rise: float | None = None,
    perplexity: Measure | None = None,
) -> tuple[Trial, list[Trial]]:
    """The chosen trial, and all those whose perplexity was measured on the way.

    Perplexity costs a pass over the text, so it is measured in the order of accuracy until one edit holds.

    Args:
        max_rise: Allowed relative rise of perplexity, such as 0.02; None for any.
        perplexity: Measures it; None where there is no text.
    """
    ordered = by_accuracy(trials)
    if rule == PUBLISHED:
        return (ordered[0] if ordered else base), []
    measured: list[Trial] = []
    limit = None
    for one in ordered:
        if one.accuracy <= base.accuracy:
            break
        if not _as_consistent(one, base):
            continue
        if perplexity is None or max_rise is None:
            return one, measured
        if limit is None:
            base = base if base.perplexity is not None else replace(base, perplexity=perplexity(base))
            assert base.perplexity is not None
            limit = base.perplexity * (1 + max_rise)
        measured.append(replace(one, perplexity=perplexity(one)))
        if (measured[-1].perplexity or 0.0) <= limit:
            return measured[-1], measured
    return base, measured


def pareto(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that no other beats in accuracy and log loss and, where both have them, consistency.

    The most accurate first; of equals the first one stays.
    """
    kept: list[Trial] = []
    # Whoever dominates another comes before it in this order.
    for one in sorted(trials, key=lambda one: (-one.accuracy, one.log_loss, -(one.consistency or 0.0))):
        if not any(_dominates(other, one) for other in kept):
            kept.append(one)
    return kept


def _dominates(one: Trial, other: Trial) -> bool:
    """At least as good in everything."""
    consistent = one.consistency is None or other.consistency is None or one.consistency >= other.consistency
    return one.accuracy >= other.accuracy and one.log_loss <= other.log_loss and consistent


def _as_consistent(one: Trial, base: Trial) -> bool:
    return one.consistency is None or base.consistency is None or one.consistency >= base.consistency
