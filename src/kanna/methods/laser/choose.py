"""Which of the edits tried is taken.

The published rule takes the highest validation accuracy, ties by log loss, and never the model as it is. The
constrained rule lets the model as it is take part and win ties, and refuses an edit that is less consistent
over paraphrases or whose perplexity of plain text rises by more than is allowed.
"""

from collections.abc import Callable, Iterable, Sequence

from kanna.methods.laser.results import Trial
from kanna.methods.laser.search_config import CONSTRAINED, PUBLISHED

Measure = Callable[[Trial], float]


def by_accuracy(trials: Iterable[Trial]) -> list[Trial]:
    """The most accurate first, ties by the smaller log loss, then by order."""
    return sorted(trials, key=lambda trial: (-trial.accuracy, trial.log_loss))


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
    for trial in ordered:
        if trial.accuracy <= base.accuracy:
            break
        if not _as_consistent(trial, base):
            continue
        if perplexity is None or max_rise is None:
            return trial, measured
        if limit is None:
            base = base if base.perplexity is not None else base.measured(perplexity(base))
            assert base.perplexity is not None
            limit = base.perplexity * (1 + max_rise)
        measured.append(trial.measured(perplexity(trial)))
        if (measured[-1].perplexity or 0.0) <= limit:
            return measured[-1], measured
    return base, measured


def pareto(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that no other beats in accuracy and log loss and, where both have them, consistency.

    The most accurate first; of equals the first one stays.
    """
    kept: list[Trial] = []
    # Whoever dominates another comes before it in this order.
    for trial in sorted(
        trials, key=lambda trial: (-trial.accuracy, trial.log_loss, -(trial.consistency or 0.0))
    ):
        if not any(_dominates(better, trial) for better in kept):
            kept.append(trial)
    return kept


def _dominates(trial: Trial, other: Trial) -> bool:
    """At least as good in everything."""
    surer = trial.accuracy >= other.accuracy and trial.log_loss <= other.log_loss
    return surer and _as_consistent(trial, other)


def _as_consistent(trial: Trial, other: Trial) -> bool:
    """No less consistent, where both have groups."""
    if trial.consistency is None or other.consistency is None:
        return True
    return trial.consistency >= other.consistency
