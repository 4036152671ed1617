"""What a tolerance file holds, or the same in a recipe; imports nothing heavy."""

from pydantic import BaseModel, ConfigDict, Field

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
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    confidence: float = CONFIDENCE
    tasks: tuple[Line, ...] = Field(default=(), description="What the model is for.")
    guards: tuple[Line, ...] = ()
