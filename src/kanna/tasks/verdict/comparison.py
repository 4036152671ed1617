"""What a comparison of two models on the same tasks holds: in memory, as JSON, and on a page."""

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import Field

from kanna.result import Bytes, Grown, Result, Scores, Several, Shown
from kanna.tasks.records import Evaluation, TaskScore
from kanna.tasks.verdict.tolerance import PASS, Decision, Status

NOT_JUDGED: Final = "not judged"
EMPTY: Final = "empty"
VerdictStatus = Status | Literal["not judged", "empty"]
LOST, GAINED = "lost", "gained"


class Flip(Result):
    """An example on which one model is right and the other wrong, or that got worse.

    Args:
        row: Its place in the task, from 0; people are shown it counted from 1, as the lines of a file are.
    """

    row: int
    prompt: str
    expected: str
    base: str
    new: str
    direction: str
    change: float


class Divergence(Result):
    """How far next-token distributions are apart, over all tokens looked at.

    Args:
        kl_mean: Mean of KL(base || new), nats per token.
        kl_p99: 99th percentile of the same.
        top1_agreement: Share of tokens after which both find the same next token likeliest.
        tokens: How many.
    """

    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int


class Blame(Result):
    """What putting one matrix back does.

    Args:
        matrix: Module path.
        repaired: Flips from right to wrong that are right again.
        undone: Flips from wrong to right that are wrong again.
    """

    matrix: str
    repaired: int
    undone: int


class TaskComparison(Result):
    """One task.

    Args:
        guard: Whether the task only guards against side effects.
        rows: Compared.
        base_value: The base's headline metric; "base" in JSON.
        new_value: The new model's, on the same rows; "new" in JSON.
        decision: None where no tolerance was given.
        lost: Rows that were right and are wrong.
        gained: Rows that were wrong and are right.
        flips: The worst first.
        scores: Of both models with their records; never written, and empty in what was read.
    """

    task: str
    kind: str
    metric: str
    higher_is_better: bool
    guard: bool
    rows: int
    base_value: float = Field(validation_alias="base", serialization_alias="base")
    new_value: float = Field(validation_alias="new", serialization_alias="new")
    base_metrics: Scores
    new_metrics: Scores
    floors: Scores
    decision: Decision | None
    lost: int
    gained: int
    flips: Several[Flip] = ()
    notes: Several[str]
    scores: Several[TaskScore] = Field((), exclude=True, repr=False)

    @classmethod
    def of(
        cls,
        base: TaskScore,
        new: TaskScore,
        guard: bool,
        decision: Decision | None,
        flips: Sequence[Flip],
        lost: int,
        gained: int,
    ) -> "TaskComparison":
        """The scores of two models, and what was made of them."""
        shared = base.model_dump(include={"task", "kind", "metric", "higher_is_better", "rows", "floors"})
        return cls(
            **shared,
            guard=guard,
            base_value=base.value,
            new_value=new.value,
            base_metrics=base.metrics,
            new_metrics=new.metrics,
            decision=decision,
            lost=lost,
            gained=gained,
            flips=tuple(flips),
            notes=tuple(dict.fromkeys((*base.notes, *new.notes))),
            scores=(base, new),
        )

    @property
    def base(self) -> TaskScore:
        return self.scores[0]

    @property
    def new(self) -> TaskScore:
        return self.scores[1]


class Size(Result):
    """A model's name, and the bytes of its weights on disk."""

    model: str
    bytes: Bytes


class Comparison(Shown, Grown):
    """Two models on the same tasks.

    Args:
        base: The first.
        model: The second, which is judged.
        confidence: Of the one-sided bounds.
        status: pass, fail, undecided; "not judged" where no tolerance was given; "empty" where nothing could
            be lost, since the base itself is not above the constant answer of a task.
        explanation: One sentence for people.
        tasks: In the order asked for.
        distribution: None where it was not measured; `notes` says why.
        blame: None unless asked for.
        next_steps: After a fail, what to try, in words.
    """

    schema_version: int = 1
    kind: Literal["compare"] = "compare"
    base: Size
    model: Size
    confidence: float
    status: VerdictStatus
    explanation: str
    tasks: Several[TaskComparison]
    distribution: Divergence | None = None
    blame: Several[Blame] | None = None
    next_steps: Several[str] = ()
    since = frozenset({"next_steps"})
    notes: Several[str] = ()
    settings: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(
        cls,
        base: Evaluation,
        new: Evaluation,
        confidence: float,
        status: VerdictStatus,
        explanation: str,
        tasks: Sequence[TaskComparison],
        notes: Sequence[str] = (),
    ) -> "Comparison":
        """Two evaluations, and what was made of them."""
        sizes = [Size(model=evaluation.model, bytes=evaluation.bytes) for evaluation in (base, new)]
        return cls(
            base=sizes[0],
            model=sizes[1],
            confidence=confidence,
            status=status,
            explanation=explanation,
            tasks=tuple(tasks),
            notes=tuple(notes),
        )

    def __repr__(self) -> str:
        return f"<Comparison of {self.model.model} with {self.base.model}: {self.status}: {self.explanation}>"

    @property
    def new(self) -> Size:
        return self.model

    @property
    def divergence(self) -> Divergence | None:
        return self.distribution

    @property
    def passed(self) -> bool:
        return self.status in (PASS, NOT_JUDGED)

    def summary(self) -> dict[str, Any]:
        """What a lineage keeps: no rows of the task."""
        return self.model_dump(
            mode="json", exclude={"schema_version": True, "kind": True, "tasks": {"__all__": {"flips"}}}
        )
