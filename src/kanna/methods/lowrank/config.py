"""What the user can say about low-rank replacement; every default is decided here."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from kanna.errors import InputError
from kanna.models.selection import selection_from

Method = Literal["anchored", "whitened", "plain", "asvd", "fwsvd", "tucker"]
Allocation = Literal["global", "uniform"]

# Below it, inputs of later blocks have drifted enough that anchoring to the original outputs pays.
ANCHOR_BELOW = 0.5
CALIBRATED: frozenset[str] = frozenset({"anchored", "whitened", "asvd", "fwsvd"})

_BUDGET: JsonDict = {"group": "Which and how much"}
_HOW: JsonDict = {"group": "How"}
_DATA: JsonDict = {"group": "Calibration"}


class LowRankConfig(BaseModel):
    """Configuration of the step `lowrank`.

    Args:
        keep: Parameters kept over those stored now for the selected matrices, in (0, 1]. Give it or `rank`.
        rank: One rank for every selected matrix instead of a budget.
        method: Which error is minimised; None chooses `anchored` below keep 0.5, else `whitened`. `tucker` is
            another name of `plain`.
        allocation: How ranks are spread; None chooses `global` where gradients can be had, else `uniform`.
        outputs: `gradient` weighs output directions by the loss gradient, `equal` does not; None chooses
            `gradient` for whitened and anchored with global allocation.
        select: Which matrices (see `kanna.models.selection`). `layers` and `matrices` are another way to say
            it and become part of it.
        storage: `pair` of factors, or `pivot` (larger rank at equal bytes).
        align: Ranks are multiples of it.
        floor: Under global allocation no rank falls below this share of the uniform one.
        ridge: Added to input statistics, as a share of their mean diagonal; tenfold when tokens are few.
        bias_correction: Let the bias take over the mean of what is lost; None does so where there is a bias.
        refine: Optimiser steps per block after the closed form.
        tokens: Calibration tokens at most; fewer than 256 say nothing.
        gradient_tokens: Of these, how many go through the backward pass.
        context: Length of calibration windows; None takes min(max positions, tokenizer's limit, 2048).
        batch: Windows computed at a time.
        seed: Of the order of calibration rows and of refinement.
    """

    # Another way to say `select`, on the command line and in recipes.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "sugar": {
                "layers": {**_BUDGET, "description": "Layers: '3,18,30', '4-', '-1'."},
                "matrices": {**_BUDGET, "description": "Roles for --layers: 'all', 'q,k,v', 'mlp'."},
            }
        },
    )

    keep: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Share of the selected matrices' parameters to keep.",
        json_schema_extra=_BUDGET,
    )
    rank: int | None = Field(
        default=None, ge=1, description="One rank for all instead of a budget.", json_schema_extra=_BUDGET
    )
    select: str = Field(
        default="all",
        description="Which matrices: 'mlp', 'q,k,v@4-', 'down@-1', 're:REGEX'.",
        json_schema_extra={**_BUDGET, "metavar": "EXPR"},
    )
    method: Method | None = Field(
        default=None,
        description="anchored (below keep 0.5), whitened (above), plain (or tucker), asvd, fwsvd.",
        json_schema_extra={**_HOW, "metavar": "NAME"},
    )
    allocation: Allocation | None = Field(
        default=None,
        description="How ranks are spread: global (where gradients fit in memory) or uniform.",
        json_schema_extra={**_HOW, "metavar": "NAME", "also": ["--allocate"]},
    )
    outputs: Literal["gradient", "equal"] | None = Field(
        default=None,
        description="Output directions weighed by the loss gradient, or equal: gradient, equal.",
        json_schema_extra={**_HOW, "metavar": "NAME"},
    )
    storage: Literal["pair", "pivot"] = Field(
        default="pair",
        description="Two factors (pair), or the smaller pivot.",
        json_schema_extra={**_HOW, "metavar": "NAME"},
    )
    align: int = Field(default=8, ge=1, description="Ranks are multiples of it.", json_schema_extra=_HOW)
    floor: float = Field(
        default=0.5, ge=0.0, le=1.0, description="Least share of the uniform rank.", json_schema_extra=_HOW
    )
    ridge: float = Field(
        default=1e-3, ge=0.0, description="Added to input statistics.", json_schema_extra=_HOW
    )
    bias_correction: bool | None = Field(
        default=None,
        description="Let biases take over the mean of what is lost; where there are biases.",
        json_schema_extra=_HOW,
    )
    refine: int = Field(
        default=0, ge=0, description="Optimiser steps per block afterwards.", json_schema_extra=_HOW
    )
    tokens: int = Field(
        default=32_768, ge=256, description="Calibration tokens at most.", json_schema_extra=_DATA
    )
    gradient_tokens: int = Field(
        default=16_384,
        ge=1,
        description="Of these, how many go through the backward pass.",
        json_schema_extra=_DATA,
    )
    context: int | None = Field(
        default=None,
        ge=8,
        description="Length of calibration windows, and most tokens read on --task.",
        json_schema_extra=_DATA,
    )
    batch: int = Field(default=8, ge=1, description="Windows computed at a time.", json_schema_extra=_DATA)
    seed: int = Field(default=0, description="Of all that is drawn.", json_schema_extra={"group": "Running"})

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
        """Whether the resolved configuration needs a backward pass through the whole model."""
        return self.allocation == "global" or self.outputs == "gradient" or self.method == "fwsvd"

    @property
    def two_streams(self) -> bool:
        """Whether blocks are run both in the original and in the compressed model."""
        return self.method == "anchored" or self.refine > 0
