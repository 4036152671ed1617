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
        held_out: The last of these, or that of the better state that was taken; None without any.
        stopped: Why before the end; empty if it was not.
    """

    losses: Several[float]
    validation: Several[Look]
    stopped: str
    held_out: float | None = None


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


class Weights(Result):
    """Of the bases of a matrix, the largest first.

    Args:
        before: As they were.
        after: As they were learnt; 0 where a basis was dropped.
    """

    matrix: str
    before: Several[float]
    after: Several[float]


class Token(Result):
    """Where a basis is excited.

    Args:
        before: What is read before the token.
        after: What follows.
        value: Size of the input's part in the direction that the basis reads.
    """

    token: str
    before: str
    after: str
    value: float


class Basis(Result):
    """One basis that gained or lost much weight.

    Args:
        place: In its matrix, from 0, the largest first.
        before: Its weight as it was.
        after: As it was learnt; 0 where it was dropped.
        tokens: That excite it most, in the rows that were learnt and as the model was.
    """

    matrix: str
    place: int
    before: float
    after: float
    tokens: Several[Token]


class Text(Result):
    """Mean loss of the tokens of text that is not learnt, nats."""

    before: float
    after: float
    tokens: int


class Basel(Result):
    """A run.

    Args:
        keep_model: Share of all parameters of the model that is left.
        least_keep_model: The same if nothing were left of the selected matrices.
        matrices: The selected ones.
        events: In their order.
        weights: Part 1; None where factors were there already.
        factors: Part 2; None where there was none.
        notes: What the reader must know of how it was measured.
        held_out_hash: sha256 of the rows that are not learnt, as tokens: runs with the same can be compared.
        moved: Of each role the matrix whose weights moved most, the most moved of all first.
        gained: Bases that gained most, by the norm of their matrix.
        lost: Bases that lost most.
        text: What is forgotten; None where no text was given.
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
    keep_model: float | None = None
    least_keep_model: float | None = None
    held_out_hash: str = ""
    moved: Several[Weights] = ()
    gained: Several[Basis] = ()
    lost: Several[Basis] = ()
    text: Text | None = None
