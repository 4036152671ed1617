"""What the user can say about a search; imports nothing heavy."""

import math
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, model_validator
from pydantic.config import JsonDict

from kanna.configuration import DRAWN, Configuration, Numbers, Texts, setting
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.results import Settings
from kanna.models.selection import selection_from

# The published code's grid: rates 1, 2, 4, 6, 8, 9, 9.5, 9.9, 9.95.
RHOS = ("0.9", "0.8", "0.6", "0.4", "0.2", "0.1", "0.05", "0.01", "0.005")
PUBLISHED, CONSTRAINED = "published", "constrained"
_WHAT: JsonDict = {"group": "What is tried"}
_CHOICE: JsonDict = {"group": "Choice"}
_LIST: JsonDict = {**_WHAT, "metavar": "LIST", "text": True}
_FILE: JsonDict = {"metavar": "FILE"}


def _rise(given: Any) -> Any:
    """A share as a text: 2%, 0.02 or none."""
    if not isinstance(given, str):
        return given
    text = given.strip()
    if text == "none":
        return None
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value < math.inf:
        raise ValueError("this is no share from 0: write 2%, 0.02 or none")
    return value


def _positive(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers or min(numbers) < 1:
        raise ValueError("numbers begin at 1")
    return numbers


def _shares(given: tuple[str, ...]) -> tuple[str, ...]:
    for text in given:
        try:
            share = Decimal(text)
        except InvalidOperation:
            share = Decimal("NaN")
        if not share.is_finite() or not 0 <= share <= 1:
            raise ValueError(f"rho {text} is no number from 0 to 1: it is the share of the largest rank kept")
    return given


class SearchOptions(Configuration):
    """What a search looks at, and how it chooses."""

    roles: str = setting("mlp", "Roles or groups: mlp, attn, all, or mlp_in,mlp_out.", _WHAT)
    layers: str = setting("all", "all, 4-, -8-, 0,3-5.", _WHAT)
    rhos: Annotated[Texts, AfterValidator(_shares)] = setting(
        RHOS, "Shares of the largest rank.", {**_LIST, "flag": "--rho"}
    )
    blocks: Annotated[Numbers, AfterValidator(_positive)] = setting(
        (1,), "Numbers of row blocks, each truncated on its own: 1,4.", _LIST
    )
    budget: Budget = setting(Budget(), "Exhaustive or fast, and limits.", {"flag": None})
    rule: str = setting(
        CONSTRAINED,
        "constrained | published.",
        {**_CHOICE, "metavar": "NAME", "choices": [CONSTRAINED, PUBLISHED]},
    )
    max_ppl_rise: Annotated[float | None, BeforeValidator(_rise)] = setting(
        0.02,
        "Allowed rise of perplexity on --text: 2%, or none.",
        {**_CHOICE, "metavar": "SHARE", "text": True},
    )
    text: Path | None = setting(None, "Plain text for perplexity.", {**_CHOICE, **_FILE})
    text_tokens: int = setting(8192, "Of --text at most.", _CHOICE, ge=2)
    share: float = setting(0.2, "Of the rows, for validation.", {**_CHOICE, "flag": "--validation-share"})
    first: bool = setting(False, "Validate on the first rows, as published.", _CHOICE)
    test: Path | None = setting(
        None, "Rows of their own for the final figure; all others then choose.", {**_WHAT, **_FILE}
    )
    by: str | None = setting(
        None, "Also score by this key of the rows, such as frequency.", {**_WHAT, "metavar": "KEY"}
    )
    seed: int = setting(
        0, "Of the split, the order of rows and the random controls.", {"group": "Running"}, **DRAWN
    )
    memory: int = setting(2**31, "Bytes of hidden states kept in memory.", {"flag": None})

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        asked = "max_ppl_rise" in self.model_fields_set and self.max_ppl_rise is not None
        if asked and self.text is None:
            raise ValueError("--max-ppl-rise needs a text to measure perplexity on: add --text FILE")
        return self

    @property
    def selection(self) -> str:
        """As `kanna.models.selection` reads it."""
        return selection_from(None if self.layers in ("all", "*") else self.layers, self.roles)

    def settings(self) -> Settings:
        """What a result depends on; memory is not part of it."""
        files = {"text": self.text, "test": self.test}
        names = {key: None if path is None else path.name for key, path in files.items()}
        lists = {"rhos": list(self.rhos), "blocks": list(self.blocks)}
        return Settings(**{**dict(self), **names, **lists, "budget": Budget(**dict(self.budget))})

    def to_dict(self) -> dict[str, Any]:
        return self.settings().to_dict()
