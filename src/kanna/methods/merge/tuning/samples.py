"""What models scored on rows that choose, row by row, and what a candidate is worth by that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks.journal import append_line, read_sound
from kanna.tasks.records import TaskScore


@dataclass(frozen=True)
class Sample:
    """One model on the calibration rows of one task.

    Args:
        values: Of the metric, row by row; more is better.
        probabilities: Of the right answers.
    """

    values: tuple[float, ...]
    probabilities: tuple[float, ...]

    @property
    def score(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def probability(self) -> float:
        return math.fsum(self.probabilities) / len(self.probabilities)


def sample(score: TaskScore) -> Sample:
    """Of the records of a task; a metric of which less is better is turned round."""
    sign = 1.0 if score.higher_is_better else -1.0
    return Sample(
        tuple(sign * record.values[score.metric] for record in score.records),
        tuple(math.exp(-record.values["log_loss"]) for record in score.records),
    )


@dataclass(frozen=True)
class Scale:
    """Of one task, the score of the base and what its expert gained: a normalised score is 0 and 1 there."""

    base: float
    gain: float

    def normalised(self, score: float) -> float:
        return (score - self.base) / self.gain


@dataclass(frozen=True)
class Worth:
    """What a candidate is worth; the larger is the better.

    Args:
        normalised: Mean over tasks of the normalised score.
        probability: Mean over tasks of the mean probability of the right answer; breaks ties.
    """

    normalised: float
    probability: float

    @property
    def key(self) -> tuple[float, float]:
        return self.normalised, self.probability


def worth(scales: Mapping[str, Scale], scored: Mapping[str, Sample]) -> Worth:
    """Of the samples of all tasks."""
    return Worth(
        math.fsum(scales[name].normalised(one.score) for name, one in scored.items()) / len(scored),
        math.fsum(one.probability for one in scored.values()) / len(scored),
    )


def best(worths: Sequence[Worth]) -> int:
    """Index of the best one, the first of equals."""
    return max(range(len(worths)), key=lambda index: (worths[index].key, -index))


def scale(task: str, expert: str, of_base: Sample, of_expert: Sample) -> Scale:
    """The scale of a task.

    Raises:
        InputError: The expert is no better at it than the base.
    """
    gain = of_expert.score - of_base.score
    if gain <= 0:
        raise InputError(
            f"{expert} gains nothing on its own task {task}: it scores {of_expert.score:.4f} there on "
            f"{len(of_expert.values)} calibration rows, and the base {of_base.score:.4f}",
            "give the task that it was trained for, or leave this expert out",
        )
    return Scale(of_base.score, gain)


def _read(data: dict[str, Any]) -> tuple[tuple[str, str], Sample]:
    values, probabilities = (tuple(map(float, data[key])) for key in ("values", "probabilities"))
    if not values or len(values) != len(probabilities):
        raise ValueError("no sample")
    return (str(data["candidate"]), str(data["task"])), Sample(values, probabilities)


@dataclass
class Notebook:
    """Samples on disk, one a line, so that a search that was killed goes on.

    Args:
        path: Of the file; None keeps nothing.
        known: (candidate, task) -> sample.
    """

    path: Path | None
    known: dict[tuple[str, str], Sample] = field(default_factory=dict)

    @staticmethod
    def open(path: Path | None) -> Notebook:
        """What the file holds, up to a line that is damaged or was cut short."""
        return Notebook(path, dict(read_sound(path, _read)))

    def add(self, candidate: str, task: str, found: Sample) -> None:
        self.known[candidate, task] = found
        line = {"values": list(found.values), "probabilities": list(found.probabilities)}
        append_line(self.path, {"candidate": candidate, "task": task, **line})
