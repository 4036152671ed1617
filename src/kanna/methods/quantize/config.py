"""What the user can say about quantising; every default is decided here."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator
from pydantic.config import JsonDict

from kanna.configuration import SEEDS, Configuration, Texts, setting
from kanna.errors import InputError

CHANNEL = "channel"
# More inputs than any matrix has.
_MOST_GROUP = 2**20
# Without calibration; decided by the perplexity of SmolLM2, see docs/peqa.md.
UNCALIBRATED: Literal["minmax", "mse", "hqq"] = "minmax"

_WHAT: JsonDict = {"group": "Which and how much"}
_HOW: JsonDict = {"group": "How"}
_NAME: JsonDict = {**_HOW, "metavar": "NAME"}
_DATA: JsonDict = {"group": "Calibration"}


def _group(given: Any) -> str:
    """`channel`, or a whole number of at least 1, as text."""
    text = str(given).strip()
    if text == CHANNEL or (text.isdecimal() and 0 < int(text) <= _MOST_GROUP):
        return text
    raise ValueError(f"a group is a number of inputs such as 64, at most {_MOST_GROUP:,}, or channel")


class QuantizeConfig(Configuration):
    """Configuration of the step `quantize`."""

    bits: int = setting(..., "Of a weight: 4, 3, 2 or 8, and what lies between.", _WHAT, ge=2, le=8)
    group: Annotated[str, BeforeValidator(_group)] = setting(
        "64",
        "Inputs that share a scale; channel for all of a row.",
        {**_WHAT, "metavar": "32|64|128|channel"},
    )
    symmetric: bool = setting(False, "Without zero-points: the middle code is 0.", _WHAT)
    select: str = setting(
        "all", "Which matrices: 'mlp', 'q,k,v@4-', 'all,!down@0', 're:REGEX'.", {**_WHAT, "metavar": "EXPR"}
    )
    skip: str | None = setting(None, "Of these, which stay as they are.", {**_WHAT, "metavar": "EXPR"})
    bits_of: Texts = setting(
        (),
        "Other bits for some: 'down=8' or 'v@0=4,down=8'.",
        {**_WHAT, "metavar": "EXPR=BITS", "text": True},
    )
    method: Literal["auto", "minmax", "mse", "hqq", "gptq"] = setting(
        "auto", "minmax, mse, hqq; gptq, which needs calibration text (auto takes it where there is).", _NAME
    )
    inputs: Literal["original", "anchored"] = setting(
        "original",
        "Of gptq: what the original model reads (original), or what the quantised part before hands on, "
        "fitted to the original outputs (anchored), which needs many tokens for each input.",
        _NAME,
    )
    refit: bool = setting(False, "Of gptq: the best scales for the codes that were chosen.", _HOW)
    tokens: int = setting(32_768, "Calibration tokens at most.", _DATA, ge=256)
    context: int | None = setting(
        None, "Length of calibration windows, and most tokens read on --task.", _DATA, ge=8
    )
    batch: int = setting(8, "Windows computed at a time.", _DATA, ge=1)
    ridge: float = setting(
        1e-3, "Of anchored: how strongly it holds on to the weights as they are.", _HOW, ge=0.0
    )
    seed: int = setting(0, "Of the choice of calibration windows.", {"group": "Running"}, **SEEDS)

    def check_given(self, *, has_text: bool) -> None:
        if self.method == "gptq" and not has_text:
            raise InputError("gptq needs calibration text", "give --calibration FILE, or --method minmax")

    @model_validator(mode="after")
    def _grouped_hqq(self) -> Self:
        if self.method == "hqq" and self.group == CHANNEL:
            raise ValueError("hqq does not work with one group a row: give a group size, or another method")
        return self

    @property
    def group_size(self) -> int | None:
        return None if self.group == CHANNEL else int(self.group)

    def resolved(self, has_text: bool) -> "QuantizeConfig":
        """The same with the method decided."""
        chosen = ("gptq" if has_text else UNCALIBRATED) if self.method == "auto" else self.method
        return self.model_copy(update={"method": chosen})
