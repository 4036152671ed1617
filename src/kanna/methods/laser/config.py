"""What the user can say about rank reductions."""

from typing import Literal, Self

from pydantic import field_validator, model_validator
from pydantic.config import JsonDict

from kanna.configuration import SEEDS, Configuration, setting
from kanna.errors import InputError
from kanna.methods.laser.edits import Edit, parse_edit

Mode = Literal["top", "bottom", "random", "magnitude", "zero", "noise", "none"]
_WHAT: JsonDict = {"group": "What is tried"}
_STORE: JsonDict = {"group": "Storage"}


class LaserConfig(Configuration):
    """Configuration of the step `laser`.

    Of its modes, `top` is LASER; `bottom` the other components alone (section 5.2 of the paper); `random`
    components, pruning by `magnitude`, `zero` and `noise` of the same size are controls. Blocks of rows are
    the clustering of arXiv 2510.20800.
    """

    edits: tuple[str, ...] = setting(
        (),
        "mlp_in:27:0.01 (rho), down@-1:k=40, mlp:all:energy=0.9, q,k@3-:mp; may be repeated.",
        {**_WHAT, "flag": "--edit", "metavar": "ROLE:LAYERS:RANK"},
    )
    mode: Mode = setting(
        "top",
        "top (LASER) | bottom | random | magnitude | zero | noise | none.",
        {**_WHAT, "metavar": "NAME"},
    )
    blocks: int = setting(1, "Row blocks truncated each on its own.", _WHAT, ge=1)
    factored: bool = setting(False, "Store two factors where they are smaller.", _STORE)
    keep_originals: bool = setting(False, "Keep the original matrices, to restore alone.", _STORE)
    seed: int = setting(0, "Of the controls.", {"group": "Running"}, **SEEDS)

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
