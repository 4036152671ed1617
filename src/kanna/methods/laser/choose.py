"""Which of the edits tried is taken, and which several together (section 5.1 of the paper).

The published rule takes the highest validation accuracy, ties by log loss, and never the model as it is. The
constrained rule lets the model as it is take part and win ties, and refuses an edit that is less consistent
over paraphrases or whose perplexity of plain text rises by more than is allowed.
"""

from collections.abc import Callable, Iterable, Sequence

from kanna.methods.laser.results import Stage, Trial
from kanna.methods.laser.search_config import CONSTRAINED, PUBLISHED

Measure = Callable[[Trial], float]
Score = tuple[float, float, float | None]
"""(accuracy, log loss, consistency)"""


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
        if not _as_consistent(trial.consistency, base.consistency):
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
    return surer and _as_consistent(trial.consistency, other.consistency)


def _as_consistent(new: float | None, old: float | None) -> bool:
    """No less consistent, where both have groups."""
    return new is None or old is None or new >= old


def order(trials: Iterable[Trial], base: Trial, most: int) -> list[Trial]:
    """What to try: of each matrix its best edit that is no worse than the base, the last layers first.

    Args:
        most: How many steps are tried.
    """
    best: dict[str, Trial] = {}
    for trial in trials:
        known = best.get(trial.matrix)
        if known is None or (-trial.accuracy, trial.log_loss) < (-known.accuracy, known.log_loss):
            best[trial.matrix] = trial
    useful = [trial for trial in best.values() if _better(_score(trial), _score(base))]
    strongest = by_accuracy(useful)[:most]
    return sorted(strongest, key=lambda trial: (-trial.layer, -trial.accuracy, trial.log_loss))


def compose(
    base: Score,
    candidates: Sequence[Trial],
    score: Callable[[Sequence[Trial]], Score],
    allowed: Callable[[Sequence[Trial]], bool] = lambda _: True,
) -> list[Stage]:
    """Try the candidates in their order on top of those accepted before.

    A step is accepted only if the validation score does not fall, and it is better in accuracy or, at the
    same accuracy, in log loss. What is rejected leaves no trace.

    Args:
        base: Score of the model as it is.
        score: Of the model with these edits.
        allowed: Whether these edits keep within other limits; asked only where the score is good.
    """
    accepted: list[Trial] = []
    best = base
    stages: list[Stage] = []
    for trial in candidates:
        new = score([*accepted, trial])
        good = _better(new, best) and _as_consistent(new[2], best[2]) and allowed([*accepted, trial])
        if good:
            accepted.append(trial)
            best = new
        accuracy, log_loss, consistency = new
        stage = Stage(
            edit=trial.edit,
            accuracy=accuracy,
            log_loss=log_loss,
            consistency=consistency,
            accepted=good,
            number=len(accepted) if good else 0,
        )
        stages.append(stage)
    return stages


def _score(trial: Trial) -> Score:
    return trial.accuracy, trial.log_loss, trial.consistency


def _better(new: Score, old: Score) -> bool:
    """More accurate, or as accurate and surer of the right answers."""
    return (-new[0], new[1]) < (-old[0], old[1])
