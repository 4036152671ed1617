"""Several edits together, found greedily from the last layer to the first (section 5.1).

A step is accepted only if the validation score does not fall, and it is better in accuracy or, at the same
accuracy, in log loss. What is rejected leaves no trace.
"""

from collections.abc import Callable, Iterable, Sequence

from kanna.methods.laser.choose import by_accuracy
from kanna.methods.laser.results import Stage, Trial

Score = tuple[float, float, float | None]
"""(accuracy, log loss, consistency)"""


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
        good = _better(new, best) and not _less_consistent(new, best) and allowed([*accepted, trial])
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


def _less_consistent(new: Score, old: Score) -> bool:
    return new[2] is not None and old[2] is not None and new[2] < old[2]
