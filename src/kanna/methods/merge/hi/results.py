"""What Hi-Merging says of itself, in `merge.json` and in reports; read where no torch is."""

from __future__ import annotations

from typing import Any, Literal

from kanna.methods.merge.tuning.results import Judgement, TunedTask
from kanna.result import Result, Several


class HiCell(Result):
    """A pair of the first stage and what it scored."""

    kept: float
    scale: float
    score: float
    probability: float


class HiExpert(Result):
    """An expert by itself.

    Args:
        kept: Share of its difference's entries that stay.
        scale: By which they are multiplied.
        grid: All pairs that were tried; none without the first stage.
    """

    name: str
    kept: float
    scale: float
    grid: Several[HiCell]


class HiImpact(Result):
    """What a block gives one task.

    Args:
        alpha: Score lost without it.
        beta: Score gained by it alone.
        contribution: The sum.
    """

    alpha: float
    beta: float
    contribution: float


class HiBlock(Result):
    """A block of the merge at the beginning of a round.

    Args:
        own: For each task, in its expert; none where no task was asked.
        merged: For each task, in the merge; likewise.
        gamma: For each task, own less merged contribution, over what the expert gains; without tasks, see
            `signs`.
        errors: Their standard errors over rows; without tasks, over entries.
        total: Sum of gamma; blocks are ranked by it.
        kind: severe, partial or mutual.
    """

    block: str
    own: Several[HiImpact]
    merged: Several[HiImpact]
    gamma: Several[float]
    errors: Several[float]
    total: float
    total_error: float
    kind: str


class HiStep(Result):
    """A change that was tried; scores are mean normalised ones on calibration rows, None without tasks."""

    block: str
    kind: str
    action: str
    before: float | None
    after: float | None
    accepted: bool


class HiRound(Result):
    """One round over all blocks."""

    blocks: Several[HiBlock]
    steps: Several[HiStep]


class HiPart(Result):
    """How much of each expert is in a block in the end, in the order of the experts."""

    block: str
    kept: Several[float]
    scales: Several[float]


class MergeAnalysis(Result):
    """Where the models of a recipe disagree.

    Args:
        base: Name of the base; None without one.
        disagreement: Of weights, by layer; None where no two models differ from a base.
        tasks: Of the experts; none where no tasks were given.
        blocks: Contributions and conflicts on these tasks.
    """

    schema_version: int = 1
    kind: Literal["merge-analysis"] = "merge-analysis"
    method: str
    base: str | None
    models: Several[str]
    disagreement: dict[str, Any] | None
    tasks: Several[TunedTask]
    blocks: Several[HiBlock]


class HiOutcome(Result):
    """Hi-Merging.

    Args:
        base: Its name.
        dropped: Experts that gained nothing.
        settings: With which it was made, every default decided.
        evaluations: How many times a model was scored on the calibration rows of a task.
        before: Mean normalised score on the calibration rows, of the merge before the rounds; None where no
            task was asked.
        after: The same of the merge in the end.
        normalised: For each task, in the end.
    """

    base: str
    experts: Several[HiExpert]
    dropped: Several[str]
    tasks: Several[TunedTask]
    settings: dict[str, Any]
    evaluations: int
    before: float | None
    after: float | None
    normalised: Several[float]
    rounds: Several[HiRound]
    parts: Several[HiPart]
    test: Judgement | None = None
