"""What Basel found, as it lies beside the model; read by reports where no torch is."""

from typing import Annotated, Literal

from pydantic import Strict

from kanna.result import Result, Several

RESULT = "kanna-basel.json"
# Steps done, and the loss then.
Look = Annotated[tuple[int, float], Strict(False)]


class Part(Result):
    """How a part was trained.

    Args:
        losses: Mean loss of the tokens scored in each step, nats.
        validation: (steps done, the same on rows that are not learnt).
        stopped: Why before the end; empty if it was not.
    """

    losses: Several[float]
    validation: Several[Look]
    stopped: str


class Event(Result):
    """What an event left.

    Args:
        step: Steps done.
        bases: Of each matrix, in the order of `Basel.matrices`.
    """

    step: int
    bases: Several[int]


class MatrixOutcome(Result):
    """One matrix.

    Args:
        rank: Bases that stayed and new ones together; None where it is stored dense.
    """

    name: str
    role: str
    layer: int
    out_features: int
    in_features: int
    rank: int | None
    kept: float


class Basel(Result):
    """A run.

    Args:
        matrices: The selected ones.
        events: In their order.
        weights: Part 1; None where factors were there already.
        factors: Part 2; None where there was none.
        notes: What the reader must know of how it was measured.
    """

    schema_version: int = 1
    kind: Literal["basel"] = "basel"
    model: str
    importance: str
    parameters: int
    keep_selected: float
    rows: int
    matrices: Several[MatrixOutcome]
    events: Several[Event]
    weights: Part | None
    factors: Part | None
    notes: Several[str] = ()
