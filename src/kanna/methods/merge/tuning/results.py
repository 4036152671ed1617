"""What tuned merges say of themselves, in files and in reports; read where no torch is."""

from __future__ import annotations

from typing import Any, Literal

from kanna.result import Result, Several
from kanna.tasks.verdict.tolerance import Decision

SWEEP = "merge-sweep.json"


class TunedTask(Result):
    """A task and the rows that chose by it.

    Args:
        expert: The model that knows it.
        task: Name of its file.
        metric: Of which more is better, or less where it says a loss.
        calibration_rows: Rows that chose.
        test_rows: Rows that judge.
        base: What the base scores on the former; a loss with a minus.
        gain: What the expert scores more.
    """

    expert: str
    task: str
    sha256: str
    metric: str
    calibration_rows: int
    test_rows: int
    base: float
    gain: float


class Point(Result):
    """A combination of values and what it scored on the calibration rows.

    Args:
        values: In the order of the axes.
        scores: Name of an expert -> its task's score.
        probabilities: The same of the mean probability of the right answer.
        normalised: Mean over tasks of (score - base) / gain.
        probability: Mean over tasks; breaks ties.
    """

    values: Several[float]
    scores: dict[str, float]
    probabilities: dict[str, float]
    normalised: float
    probability: float


class JudgedTask(Result):
    """A task on the rows that chose nothing.

    Args:
        expert: The model that knows it.
        metric: Of the scores.
        base: Score of the base.
        of_expert: Score of the expert.
        merged: Score of the merge.
        normalised: (merged - base) / (expert - base); None where the expert gains nothing on these rows.
        beside_expert: Whether the merge is as good as the expert.
        beside_base: Whether it is as good as the base.
    """

    expert: str
    metric: str
    rows: int
    base: float
    of_expert: float
    merged: float
    normalised: float | None
    beside_expert: Decision
    beside_base: Decision


class JudgedGuard(Result):
    """A file on which nothing must suffer, beside the base."""

    task: str
    metric: str
    base: float
    merged: float
    beside_base: Decision


class Judgement(Result):
    """The chosen merge on the rows that chose nothing.

    Args:
        tasks: Each beside its expert and beside the base.
        normalised: Mean over tasks; None where one has none.
        tolerance: What may be lost beside an expert; None where nothing was said.
        passed: Whether nothing was asked for that does not hold.
    """

    tasks: Several[JudgedTask]
    normalised: float | None
    tolerance: str | None
    passed: bool
    guards: Several[JudgedGuard] = ()


class SweptAxis(Result):
    """A number that varied."""

    name: str
    values: Several[float]


class Sweep(Result):
    """A sweep over one or more numbers of a recipe.

    Args:
        method: Of the recipe.
        base: Name of the base.
        models: Names of what is merged.
        settings: What the result depends on beside recipe and rows.
        evaluations: How many times a model was scored on the calibration rows of a task.
        chosen: Index of the best point.
    """

    schema_version: int = 1
    kind: Literal["merge-sweep"] = "merge-sweep"
    method: str
    base: str
    models: Several[str]
    axes: Several[SweptAxis]
    tasks: Several[TunedTask]
    settings: dict[str, Any]
    evaluations: int
    points: Several[Point]
    chosen: int
    test: Judgement | None = None
