"""What the user can say about low-rank replacement; every default is decided here."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, model_validator
from pydantic.config import JsonDict

from kanna.configuration import SEEDS, Configuration, setting
from kanna.errors import InputError
from kanna.models.selection import selection_from

Method = Literal["anchored", "whitened", "plain", "asvd", "fwsvd", "tucker"]
Allocation = Literal["global", "uniform"]

# Below it, inputs of later blocks have drifted enough that anchoring to the original outputs pays.
ANCHOR_BELOW = 0.5
CALIBRATED: frozenset[str] = frozenset({"anchored", "whitened", "asvd", "fwsvd"})

_BUDGET: JsonDict = {"group": "Which and how much"}
_HOW: JsonDict = {"group": "How"}
_NAME: JsonDict = {**_HOW, "metavar": "NAME"}
_DATA: JsonDict = {"group": "Calibration"}


class LowRankConfig(Configuration):
    """Configuration of the step `lowrank`; `keep` or `rank` must be given."""

    # Another way to say `select`, on the command line and in recipes.
    model_config = ConfigDict(
        json_schema_extra={
            "sugar": {
                "layers": {**_BUDGET, "description": "Layers: '3,18,30', '4-', '-1'."},
                "matrices": {**_BUDGET, "description": "Roles for --layers: 'all', 'q,k,v', 'mlp'."},
            }
        },
    )

    keep: float | None = setting(
        None, "Share of the parameters stored now for the selected matrices.", _BUDGET, gt=0.0, le=1.0
    )
    rank: int | None = setting(None, "One rank for all instead of a budget.", _BUDGET, ge=1)
    select: str = setting(
        "all", "Which matrices: 'mlp', 'q,k,v@4-', 'all,!down@0', 're:REGEX'.", {**_BUDGET, "metavar": "EXPR"}
    )
    method: Method | None = setting(
        None,
        "Which error is minimised: anchored (below keep 0.5), whitened (above), plain (tucker), asvd, fwsvd.",
        _NAME,
    )
    allocation: Allocation | None = setting(
        None,
        "How ranks are spread: global (where there are gradients) or uniform.",
        {**_NAME, "also": ["--allocate"]},
    )
    outputs: Literal["gradient", "equal"] | None = setting(
        None,
        "How output directions weigh: gradient (whitened and anchored with global allocation), equal.",
        _NAME,
    )
    storage: Literal["pair", "pivot"] = setting(
        "pair", "Two factors (pair), or the smaller pivot: a larger rank at equal bytes.", _NAME
    )
    align: int = setting(8, "Ranks are multiples of it.", _HOW, ge=1)
    floor: float = setting(
        0.5, "Least share of the uniform rank under global allocation.", _HOW, ge=0.0, le=1.0
    )
    ridge: float = setting(
        1e-3,
        "Added to input statistics, as a share of their mean diagonal; tenfold when tokens are few.",
        _HOW,
        ge=0.0,
    )
    bias_correction: bool | None = setting(
        None, "Let biases take over the mean of what is lost; where there are biases.", _HOW
    )
    refine: int = setting(0, "Optimiser steps per block after the closed form.", _HOW, ge=0)
    tokens: int = setting(32_768, "Calibration tokens at most.", _DATA, ge=256)
    gradient_tokens: int = setting(16_384, "Of these, how many go through the backward pass.", _DATA, ge=1)
    context: int | None = setting(
        None, "Length of calibration windows, and most tokens read on --task.", _DATA, ge=8
    )
    batch: int = setting(
        8, "Windows computed at a time: at most, and no more than 2,048 tokens.", _DATA, ge=1
    )
    seed: int = setting(0, "Of all that is drawn.", {"group": "Running"}, **SEEDS)

    @model_validator(mode="before")
    @classmethod
    def _one_selection(cls, settings: Any) -> Any:
        """`layers` and `matrices` become a selection."""
        if not isinstance(settings, dict) or not {"layers", "matrices"} & settings.keys():
            return settings
        rest = dict(settings)
        layers, matrices = rest.pop("layers", None), rest.pop("matrices", None)
        if layers is None and matrices is None:
            return rest
        if rest.get("select") is not None:
            raise ValueError("--select goes without --layers and --matrices: say it all in --select")
        try:
            return {**rest, "select": selection_from(layers, matrices or "all")}
        except InputError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.keep is None) == (self.rank is None):
            raise ValueError("give either keep or rank")
        if self.method in ("plain", "tucker", "asvd", "fwsvd") and self.outputs == "gradient":
            raise ValueError(f"outputs=gradient goes with whitened and anchored, not with {self.method}")
        return self

    def check_given(self, *, has_text: bool) -> None:
        if has_text or self.keep == 1.0:
            return
        method = self.resolved(has_text, gradients=True).method
        give = "give --calibration FILE (.jsonl or .txt, some ten thousand tokens)"
        if method != "plain":
            raise InputError(f"method {method} needs calibration text", f"{give}, or choose --method plain")
        if self.refine:
            raise InputError(
                "refinement trains blocks on calibration text, and there is none",
                f"{give}, or leave out --refine",
            )

    def resolved(self, has_text: bool, gradients: bool) -> "LowRankConfig":
        """The same with every None of method, allocation and outputs decided, and no method under two names.

        Args:
            has_text: Whether calibration text was given.
            gradients: Whether gradients of the whole model can be had.
        """
        low = self.keep is not None and self.keep < ANCHOR_BELOW
        named: Method = self.method or ("anchored" if low else "whitened")
        method: Method = "plain" if named == "tucker" else named
        if self.rank is not None:
            allocation: Allocation = "uniform"
        else:
            allocation = self.allocation or ("global" if has_text and gradients else "uniform")
        weighed = method in ("whitened", "anchored") and allocation == "global" and gradients
        outputs = self.outputs or ("gradient" if weighed else "equal")
        return self.model_copy(update={"method": method, "allocation": allocation, "outputs": outputs})

    @property
    def needs_gradients(self) -> bool:
        """Whether the resolved configuration needs a backward pass through all blocks."""
        return self.allocation == "global" or self.outputs == "gradient" or self.method == "fwsvd"

    @property
    def two_streams(self) -> bool:
        """Whether blocks are run both in the original and in the compressed model."""
        return self.method == "anchored" or self.refine > 0
