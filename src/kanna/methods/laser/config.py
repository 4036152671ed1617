"""What the user can say about rank reductions."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from kanna.errors import InputError
from kanna.methods.laser.edits import Edit, parse_edit

Mode = Literal["top", "bottom", "random", "magnitude", "zero", "noise", "none"]
_WHAT: JsonDict = {"group": "What is tried"}
_STORE: JsonDict = {"group": "Storage"}


class LaserConfig(BaseModel):
    """Configuration of the step `laser`.

    Args:
        edits: Such as ``mlp_in:27:0.01``; see `kanna.methods.laser.edits`. None: nothing is changed.
        mode: Which components stay. ``top`` is LASER; ``bottom`` the others alone (section 5.2 of the paper);
            ``random`` components, pruning by ``magnitude``, ``zero`` and ``noise`` of the same size are
            controls; ``none`` changes nothing.
        blocks: Truncate so many blocks of rows each on its own (the clustering of arXiv 2510.20800).
        factored: Store two factors where they are smaller than the matrix.
        keep_originals: Store the original matrices beside the model, so that it can be restored alone.
        seed: Of the controls.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    edits: tuple[str, ...] = Field(
        default=(),
        description="mlp_in:27:0.01 (rho), down@-1:k=40, mlp:all:energy=0.9, q,k@3-:mp; may be repeated.",
        json_schema_extra={**_WHAT, "flag": "--edit", "metavar": "ROLE:LAYERS:RANK"},
    )
    mode: Mode = Field(
        default="top",
        description="top (LASER) | bottom | random | magnitude | zero | noise | none.",
        json_schema_extra={**_WHAT, "metavar": "NAME"},
    )
    blocks: int = Field(
        default=1, ge=1, description="Row blocks truncated each on its own.", json_schema_extra=_WHAT
    )
    factored: bool = Field(
        default=False, description="Store two factors where smaller.", json_schema_extra=_STORE
    )
    keep_originals: bool = Field(
        default=False,
        description="Keep the original matrices, to restore alone.",
        json_schema_extra=_STORE,
    )
    seed: int = Field(default=0, description="Of the controls.", json_schema_extra={"group": "Running"})

    @field_validator("edits")
    @classmethod
    def _readable(cls, edits: tuple[str, ...]) -> tuple[str, ...]:
        for text in edits:
            _parsed(text)
        return edits

    @model_validator(mode="after")
    def _factorable(self) -> Self:
        if self.factored and (self.mode != "top" or self.blocks != 1):
            raise ValueError("factored goes with mode top and one block only")
        return self

    @property
    def parsed(self) -> tuple[Edit, ...]:
        return tuple(parse_edit(text) for text in self.edits)


def _parsed(text: str) -> Edit:
    try:
        return parse_edit(text)
    except InputError as error:
        raise ValueError(str(error)) from error
