"""What evaluation finds: one record per example, and their summary per task.

Records of two models on the same task have the same order and the same `row`, so any two compare pairwise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

CHOICE, ANSWER, TEXT = "choice", "answer", "text"


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TaskScore:
    """How a model did on one task.

    Args:
        task: Its name: the file's name, or lm_eval:<name>.
        kind: choice, answer or text.
        metric: The headline metric, a key of `metrics`.
        higher_is_better: Of the headline metric.
        metrics: Metric -> value over all rows: shares in 0..1, nats, or perplexity.
        floors: What needs no model: "constant" (always the commonest answer) and "answer_in_prompt" (share
            of prompts that contain their answer); absent where it has no meaning.
        records: One per example, in the order of the task.
        notes: What the reader must know: prompts cut, answers in prompts, how text was segmented.
        settings: All that the numbers depend on: context, chat, metric, new tokens, dtype, data hash.
    """

    task: str
    kind: str
    metric: str
    higher_is_better: bool
    metrics: Mapping[str, float]
    floors: Mapping[str, float]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return self.metrics[self.metric]

    def to_dict(self, records: bool = True) -> dict[str, Any]:
        said = {
            "task": self.task,
            "kind": self.kind,
            "rows": len(self.records),
            "metric": self.metric,
            "value": self.value,
            "higher_is_better": self.higher_is_better,
            "metrics": dict(self.metrics),
            "floors": dict(self.floors),
            "notes": list(self.notes),
            "settings": dict(self.settings),
        }
        return said | ({"records": [record.to_dict() for record in self.records]} if records else {})


@dataclass(frozen=True)
class Evaluation:
    """A model on its tasks.

    Args:
        model: Its name.
        bytes: Of its weights on disk.
        scores: One per task.
        run: Seconds, forward tokens and such that differ between runs.
    """

    model: str
    bytes: int
    scores: tuple[TaskScore, ...]
    run: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self, records: bool = True) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "eval",
            "model": self.model,
            "bytes": self.bytes,
            "tasks": [score.to_dict(records) for score in self.scores],
            "run": dict(self.run),
        }
