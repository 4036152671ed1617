"""What a report takes, by kind. Results are read by the models that they were written with.

Results travel: a file that was cut, edited, or made by something else is refused with the name of the field
that is wrong. Of a model directory, which has many writers, this holds the fields that a page reads.
"""

from typing import Any

from pydantic import BaseModel, Field

from kanna.measure.results import BenchResult
from kanna.result import Bytes, Result
from kanna.tasks.records import Evaluation
from kanna.tasks.verdict.comparison import Comparison


class _Base(Result):
    name: str
    hash: str


class _StepScores(Result):
    model_bytes_before: Bytes | None = None
    model_bytes_after: Bytes | None = None
    comparison: Comparison | None = None
    stage: int | None = None


class _Step(Result):
    method: str
    config: dict[str, Any]
    seed: int | None = None
    versions: dict[str, str] | None = None
    scores: _StepScores | None = None


class _Lineage(Result):
    base: _Base
    steps: list[_Step]
    files: dict[str, str] = Field(default_factory=dict)


class _Run(Result):
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class Model(Result):
    lineage: _Lineage
    run: _Run | None


KINDS: dict[str, type[BaseModel]] = {
    "compare": Comparison,
    "eval": Evaluation,
    "bench": BenchResult,
}
