"""How a model is evaluated and what may be lost, as the user says it; imports nothing heavy."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from kanna.configuration import Configuration, DType, setting
from kanna.errors import InputError

_HOW: JsonDict = {"group": "How it is scored"}


class EvalOptions(Configuration):
    """How to evaluate."""

    metric: str | None = setting(
        None,
        "acc, acc_norm | greedy, exact, contains, numeric, f1, bleu, rougeL, regex:..., topK | "
        "file.py:function | cmd:COMMAND; by default acc, greedy or perplexity, as the rows are.",
        {**_HOW, "metavar": "NAME"},
    )
    context: int | None = setting(
        None, "Most tokens read at once; by default min(max positions, tokenizer's limit, 2048).", _HOW, ge=2
    )
    stride: int | None = setting(None, "Of perplexity windows; by default half the context.", _HOW, ge=1)
    tokens: int | None = setting(None, "Score only the first so many tokens of text.", _HOW, ge=2)
    limit: int | None = setting(None, "Rows per task at most, from the beginning.", _HOW, ge=1)
    chat: bool = setting(False, "Put prompts into the chat template.", _HOW)
    new_tokens: int | None = setting(
        None,
        "Of a written answer; by default twice the longest right one, 8 to 256.",
        {**_HOW, "flag": "--max-new-tokens"},
        ge=1,
    )
    stop: tuple[str, ...] | None = setting(
        None,
        "Ends a written answer; by default a line's end behind some text, with --chat nothing.",
        {**_HOW, "metavar": "TEXT", "escapes": True},
    )
    joiner: str | None = setting(
        None,
        "What stands between prompt and answer, scored and written alike: '' for nothing, or \\n; by default "
        "a space, where the scripts of both sides have any.",
        {**_HOW, "metavar": "TEXT", "escapes": True},
    )
    legacy_contains: bool = setting(False, "Look for the answer in the prompt, too, as papers did.", _HOW)
    refuse_long: bool = setting(
        False, "Refuse prompts that do not fit, in place of cutting them from the left.", _HOW
    )
    costs: Path | None = setting(
        None, "File of costs per expected and predicted.", {**_HOW, "metavar": "FILE"}
    )
    shots: int | None = setting(None, "Examples before each question of lm_eval tasks.", _HOW, ge=0)
    include: Path | None = setting(None, "Folder of your own lm_eval tasks.", {**_HOW, "metavar": "DIR"})
    batch_tokens: int = setting(2048, "Tokens per forward pass, about.", _HOW, ge=1)
    share: bool = setting(
        True, "Compute what prompts share once, where the model is found to compute it right so.", _HOW
    )
    device: str = setting("cpu", "Where to compute: cpu, cuda, cuda:1, mps.")
    dtype: DType = setting(
        "float32", "To compute in: float32, bfloat16, float16.", {**_HOW, "metavar": "NAME"}
    )

    def check_metric(self, has_task: bool) -> None:
        """Raise InputError for a metric that there is no task for."""
        if self.metric is not None and not has_task:
            raise InputError("a metric says nothing without a task", "add --task FILE, or leave --metric out")


CONFIDENCE = 0.95


class Line(BaseModel):
    """A task and what may be lost on it.

    Args:
        task: A file, or lm_eval:NAME.
        max_drop: 1% of the base's score, or 1pt; None only measures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    max_drop: str | float | None = None


class Tolerances(BaseModel):
    """Tasks that the model is for, and guards that must not suffer.

    Args:
        confidence: At which each must hold, one-sided.
        accept_empty: A pass counts although the base itself does no better than one constant answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    confidence: float = CONFIDENCE
    accept_empty: bool = False
    tasks: tuple[Line, ...] = Field(default=(), description="What the model is for.")
    guards: tuple[Line, ...] = ()
