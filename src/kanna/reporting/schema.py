"""What results must hold to be shown: the fields that a page reads, and no more.

Results are written by kanna, but they travel: a file that was cut, edited, or made by something else is
refused with the name of the field that is wrong.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kanna.errors import InputError

M = TypeVar("M", bound=BaseModel)

Status = Literal["pass", "fail", "undecided"]
Bytes = Annotated[int, Field(gt=0)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Ratio = Annotated[list[float], Field(min_length=3, max_length=3)]
Scores = dict[str, float]


class _Part(BaseModel):
    """Unknown fields are fine; a number that is a text is not."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Model(_Part):
    model: str
    bytes: Bytes


class _Decision(_Part):
    status: Status
    difference: float
    interval: Interval
    allowed: float
    tolerance: str
    method: str
    lost: int | None
    gained: int | None


class _Flip(_Part):
    row: int
    direction: str
    prompt: str
    expected: str
    base: str
    new: str


class _Compared(_Part):
    task: str
    metric: str
    higher_is_better: bool
    guard: bool
    rows: int
    base: float
    new: float
    floors: Scores
    decision: _Decision | None
    lost: int
    gained: int
    flips: list[_Flip] = []
    notes: list[str]


class _Distribution(_Part):
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int


class _Blame(_Part):
    matrix: str
    repaired: int
    undone: int


class Comparison(_Part):
    base: _Model
    model: _Model
    confidence: float
    status: Status | Literal["not judged"]
    explanation: str
    tasks: list[_Compared]
    distribution: _Distribution | None
    blame: list[_Blame] | None
    notes: list[str]


class _Scored(_Part):
    task: str
    metric: str
    higher_is_better: bool
    rows: int
    value: float
    metrics: Scores
    floors: Scores
    notes: list[str]


class Evaluation(_Model):
    tasks: list[_Scored]


class _Spread(_Part):
    p50: float
    p95: float
    p99: float
    spread: float


class _Measured(_Part):
    prefill: _Spread
    decode: _Spread
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    concurrent_tokens_per_second: float | None
    joules_per_token: dict[str, float | None]


class _Computed(_Part):
    bytes_per_token: float
    bandwidth: float


class _Estimated(_Part):
    joules_per_token: float | None


class _Setting(_Part):
    batch: int
    context: int
    measured: _Measured
    computed: _Computed
    estimated: _Estimated


class _Memory(_Part):
    host_bytes: int
    device_bytes: int | None
    imported_bytes: int


class _Cost(_Part):
    per_million_tokens: float
    break_even_tokens: float | None
    currency: str


class _Benched(_Part):
    model: str
    bytes_on_disk: Bytes
    memory: _Memory | None
    settings: list[_Setting]
    computed_cost: _Cost | None


class _Ratio(_Part):
    batch: int
    context: int
    prefill: Ratio
    decode: Ratio


class Bench(_Part):
    models: Annotated[list[_Benched], Field(min_length=1)]
    ratios: list[_Ratio]
    meters: dict[str, str]
    settings: dict[str, Any]


class _Base(_Part):
    name: str
    hash: str


class _StepScores(_Part):
    model_bytes_before: Bytes | None = None
    model_bytes_after: Bytes | None = None
    comparison: Comparison | None = None
    stage: int | None = None


class _Step(_Part):
    method: str
    config: dict[str, Any]
    seed: int | None = None
    versions: dict[str, str] | None = None
    scores: _StepScores | None = None


class _Lineage(_Part):
    base: _Base
    steps: list[_Step]
    files: dict[str, str] = {}


class _Run(_Part):
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class Model(_Part):
    lineage: _Lineage
    run: _Run | None


KINDS: dict[str, type[BaseModel]] = {
    "compare": Comparison,
    "eval": Evaluation,
    "bench": Bench,
}


def validated(schema: type[M], data: Any, path: Path) -> M:
    """What a file holds, as its model has it.

    Raises:
        InputError: Something is missing or wrong; names the file and the field.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}", "write it again with kanna") from error
