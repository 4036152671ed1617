"""How a model is evaluated, as the user says it; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class EvalOptions:
    """How to evaluate.

    Args:
        metric: The headline metric; None takes acc, greedy or perplexity by the kind of rows.
        context: Most tokens read at once; None takes min(max positions, tokenizer's limit, 2048).
        stride: Of perplexity windows; None takes half the context.
        tokens: Of text, at most.
        limit: Rows per task, at most, from the beginning.
        chat: Put prompts into the chat template.
        new_tokens: Of a generated answer; None takes twice the longest right one, 8 to 256.
        stop: Texts at which a generated answer ends; None is a line's end, or with `chat` nothing.
        legacy_contains: Look for the answer in the prompt too.
        refuse_long: Raise instead of cutting prompts from the left.
        costs: File of costs per (expected, predicted).
        shots: Examples before each question of lm_eval tasks; None as the task says.
        include: Folder of the user's own lm_eval tasks.
        batch_tokens: Tokens per forward pass, about.
        share: Compute what prompts share once.
        device: Where to compute.
        dtype: To compute in.
    """

    # Recipes refuse keys that are none of these.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    metric: str | None = None
    context: int | None = None
    stride: int | None = None
    tokens: int | None = None
    limit: int | None = None
    chat: bool = False
    new_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    legacy_contains: bool = False
    refuse_long: bool = False
    costs: Path | None = None
    shots: int | None = None
    include: Path | None = None
    batch_tokens: int = 2048
    share: bool = True
    device: str = "cpu"
    dtype: str = "float32"
