"""What evaluation finds: one record per example, and their summary per task.

Records of two models on the same task have the same order and the same `row`, so any two compare pairwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field

from kanna.result import Bytes, Result, Scores, Several, Shown
from kanna.tasks.metrics.shown import shown

CHOICE, ANSWER, TEXT = "choice", "answer", "text"
# Of embeddings: pairs with a score, and queries with what is looked for.
SIMILARITY, RETRIEVAL = "similarity", "retrieval"
EMBEDDED = (SIMILARITY, RETRIEVAL)
# Raised whenever a model gets other scores for the same rows than before: what is kept of old ones is void.
SCORING = 5


@dataclass(frozen=True)
class Record:
    """How one example went.

    Args:
        row: Its place in the task, from 0.
        prompt: What the model read (for text: the beginning).
        expected: The right answer.
        predicted: What the model chose or wrote.
        right: Whether it counts as right; None where the metric knows no right and wrong (text, BLEU).
        values: Metric -> its value for this example, such as {"acc": 1.0, "acc_norm": 0.0, "log_loss": 2.3}.
            Text rows hold "nll" (sum in nats) and "tokens".
        group: As in the row; empty for none.
        cost: Of a wrong answer.
        label: Index of the right choice; None for other kinds.
        chosen: Index of the chosen one; None for other kinds.
        confidence: Probability the model gave to what it chose, of the choices; None for other kinds.
    """

    row: int
    prompt: str
    expected: str
    predicted: str
    right: bool | None
    values: Mapping[str, float]
    group: str = ""
    cost: float = 1.0
    label: int | None = None
    chosen: int | None = None
    confidence: float | None = None

    # There are thousands of them, so that they are no models of their own; strict would refuse their JSON.
    __pydantic_config__ = ConfigDict(strict=False)


class TaskScore(Result):
    """How a model did on one task.

    Args:
        task: Its name: the file's name, or lm_eval:<name>.
        kind: choice, answer, text, similarity or retrieval.
        rows: How many were scored.
        metric: The headline metric, a key of `metrics`.
        value: Of the headline metric.
        higher_is_better: Of the headline metric.
        metrics: Metric -> value over all rows: shares in 0..1, nats, or perplexity.
        floors: What needs no model: "constant" (always the commonest answer) and "answer_in_prompt" (share
            of prompts that contain their answer); absent where it has no meaning.
        notes: What the reader must know: prompts cut, answers in prompts, how text was segmented.
        cut: Rows whose prompt was shortened to fit the context.
        settings: All that the numbers depend on: context, chat, metric, new tokens, dtype, data hash.
        records: One per example, in the order of the task; a file may leave them out.
    """

    task: str
    kind: str
    rows: int
    metric: str
    value: float
    higher_is_better: bool
    metrics: Scores
    floors: Scores
    notes: Several[str]
    cut: int = 0
    settings: dict[str, Any]
    records: Several[Record] = ()

    @classmethod
    def of(
        cls,
        task: str,
        kind: str,
        metric: str,
        higher_is_better: bool,
        metrics: Mapping[str, float],
        floors: Mapping[str, float],
        records: Sequence[Record],
        notes: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        cut: int = 0,
    ) -> "TaskScore":
        """The score of some records."""
        return cls(
            task=task,
            kind=kind,
            rows=len(records),
            metric=metric,
            value=metrics[metric],
            higher_is_better=higher_is_better,
            metrics=dict(metrics),
            floors=dict(floors),
            notes=tuple(notes),
            cut=cut,
            settings=dict(settings or {}),
            records=tuple(records),
        )


class Evaluation(Shown, Result):
    """A model on its tasks.

    Args:
        model: Its name.
        bytes: Of its weights on disk.
        scores: One per task.
        run: Seconds, forward tokens and such that differ between runs.
    """

    schema_version: int = 1
    kind: Literal["eval"] = "eval"
    model: str
    bytes: Bytes
    scores: Several[TaskScore] = Field(validation_alias="tasks", serialization_alias="tasks")
    run: dict[str, Any]

    def __repr__(self) -> str:
        scored = "; ".join(
            f"{score.task} {score.metric} {shown(score.metric, score.value)} on {score.rows:,}"
            for score in self.scores
        )
        return f"<Evaluation of {self.model}: {scored}>"

    def to_dict(self, records: bool = True) -> dict[str, Any]:
        left_out = None if records else {"scores": {"__all__": {"records"}}}
        return self.model_dump(mode="json", exclude=left_out)
