"""Several edits together, found greedily from the last layer to the first (section 5.1).

A step is accepted only if the validation score does not fall, and it is better in accuracy or, at the same
accuracy, in log loss. What is rejected leaves no trace.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kanna.methods.laser.choose import Trial


@dataclass(frozen=True)
class Stage:
    """One step that was tried.

    Args:
        edit: As `parse_edit` reads it.
        accuracy: With all edits accepted so far and this one.
        log_loss: Likewise.
        consistency: Likewise; None without groups.
        accepted: Whether it stays.
        number: Of the stage it makes, from 1; 0 where it was rejected.
    """

    edit: str
    accuracy: float
    log_loss: float
    consistency: float | None
    accepted: bool
    number: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Score = tuple[float, float, float | None]
"""(accuracy, log loss, consistency)"""


def order(trials: Iterable[Trial], base: Trial, most: int) -> list[Trial]:
    """What to try: of each matrix its best edit that is no worse than the base, the last layers first.

    Args:
        most: How many steps are tried.
    """
    best: dict[str, Trial] = {}
    for one in trials:
        known = best.get(one.matrix)
        if known is None or (-one.accuracy, one.log_loss) < (-known.accuracy, known.log_loss):
            best[one.matrix] = one
    useful = [one for one in best.values() if _better(_score(one), _score(base))]
    strongest = sorted(useful, key=lambda one: (-one.accuracy, one.log_loss))[:most]
    return sorted(strongest, key=lambda one: (-one.layer, -one.accuracy, one.log_loss))


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
    for one in candidates:
        found = score([*accepted, one])
        good = _better(found, best) and not _less_consistent(found, best) and allowed([*accepted, one])
        if good:
            accepted.append(one)
            best = found
        stages.append(Stage(one.edit, *found, good, len(accepted) if good else 0))
    return stages


def _score(one: Trial) -> Score:
    return one.accuracy, one.log_loss, one.consistency


def _better(one: Score, other: Score) -> bool:
    """More accurate, or as accurate and surer of the right answers."""
    return (-one[0], one[1]) < (-other[0], other[1])


def _less_consistent(one: Score, other: Score) -> bool:
    return one[2] is not None and other[2] is not None and one[2] < other[2]
