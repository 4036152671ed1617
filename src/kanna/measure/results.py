"""What a bench holds: in memory, as JSON, and on a page. What was computed or estimated stands apart."""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from kanna.result import Bytes, Grown, Result, Several, Shown

# With fewer, the lowest and the highest ratio miss the median more often than one time in twenty.
FEWEST_PAIRS = 6
Triple = Annotated[tuple[float, float, float], Strict(False)]


class Spread(Result):
    """Of some times.

    Args:
        p50: Median, seconds.
        p95: 95th percentile.
        p99: 99th percentile.
        spread: Interquartile range over the median.
        count: How many times.
    """

    p50: float
    p95: float
    p99: float
    spread: float
    count: int


class Measured(Result):
    """Times in seconds, energy in joules.

    Args:
        prefill: Time to first token.
        decode: Of one step, which gives a token per prompt.
        prefill_tokens_per_second: At the median.
        decode_tokens_per_second: At the median.
        concurrent_tokens_per_second: All streams together; None where not asked for.
        joules_per_token: Meter -> prefill and decode over new tokens; None where not measured.
    """

    prefill: Spread
    decode: Spread
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    concurrent_tokens_per_second: float | None
    joules_per_token: dict[str, float | None]


class Computed(Result):
    """Args:
    bytes_per_token: Weights and keys and values read for a decode step, over its tokens.
    bandwidth: Bytes read over the median step, per second.
    """

    bytes_per_token: float
    bandwidth: float


class Estimated(Result):
    """Args:
    joules_per_token: From the user's watts; None unless asked for.
    """

    joules_per_token: float | None


class Ways(Result):
    """How products with matrices of whole numbers were made.

    Args:
        kernel: So many by torch's kernel for 4 bits.
        multiplied_out: So many with a weight that was multiplied out for each.
    """

    kernel: int
    multiplied_out: int


class Integers(Result):
    """Args:
    prefill: Of a prompt.
    decode: Of one step.
    """

    prefill: Ways
    decode: Ways


class Setting(Grown):
    """One batch and context of one model.

    Args:
        batch: Prompts at once.
        context: Tokens of a prompt.
        integers: None for a model without matrices of whole numbers, and not written then.
    """

    batch: int
    context: int
    measured: Measured
    computed: Computed
    estimated: Estimated
    integers: Integers | None = None
    since = frozenset({"integers"})


class PeakMemory(Result):
    """Peaks of one process.

    Args:
        host_bytes: Resident memory, all libraries included.
        device_bytes: Allocated on the accelerator; None on the CPU.
        imported_bytes: Resident before the model was loaded: what Python and its libraries take.
    """

    host_bytes: int
    device_bytes: int | None
    imported_bytes: int


class Cost(Grown):
    """Args:
    per_million_tokens: Decoded, in the currency.
    break_even_tokens: Tokens after which a cheaper model has paid for its making; None where it never does.
    currency: As the user wrote it; empty where nobody did.
    per_thousand_requests: Each of what the first setting reads and writes; None from an older kanna.
    """

    per_million_tokens: float
    break_even_tokens: float | None
    currency: str
    per_thousand_requests: float | None = None
    since = frozenset({"per_thousand_requests"})


class ModelBench(Result):
    """One model. Its cost is "computed_cost" in JSON."""

    model: str
    bytes_on_disk: Bytes
    memory: PeakMemory | None
    settings: Several[Setting]
    cost: Cost | None = Field(validation_alias="computed_cost", serialization_alias="computed_cost")


class Ratio(Grown):
    """Time of the base over that of the model, paired by round: above 1 is faster.

    Interval at 95 %, or all that was seen where there are fewer rounds than `FEWEST_PAIRS`.

    Args:
        request: Prefill and all decode steps, which is what a request costs; None from an older kanna.
    """

    batch: int
    context: int
    prefill: Triple
    decode: Triple
    request: Triple | None = None
    since = frozenset({"request"})


class BenchResult(Shown, Result):
    """One model, or two with their ratios.

    Args:
        models: The one asked about, then its base.
        ratios: Per setting; empty for one model.
        meters: Meter -> why it measures nothing, or empty.
        settings: What was asked for, with threads and versions.
    """

    schema_version: int = 1
    kind: Literal["bench"] = "bench"
    models: Annotated[Several[ModelBench], Field(min_length=1)]
    ratios: Several[Ratio]
    meters: dict[str, str]
    settings: dict[str, Any]

    def __repr__(self) -> str:
        names = " against ".join(model.model for model in self.models)
        return f"<BenchResult of {names}: {len(self.models[0].settings)} settings>"
