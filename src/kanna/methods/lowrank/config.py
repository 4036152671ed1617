"""What the user can say about low-rank replacement; every default is decided here."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["anchored", "whitened", "plain", "asvd", "fwsvd"]
Allocation = Literal["global", "uniform"]

# Below it, inputs of later blocks have drifted enough that anchoring to the original outputs pays.
ANCHOR_BELOW = 0.5
CALIBRATED: frozenset[str] = frozenset({"anchored", "whitened", "asvd", "fwsvd"})


class LowRankConfig(BaseModel):
    """Configuration of the step `lowrank`.

    Args:
        keep: Parameters kept over those of the selected matrices, in (0, 1]. Give it or `rank`.
        rank: One rank for every selected matrix instead of a budget.
        method: Which error is minimised; None chooses `anchored` below keep 0.5, else `whitened`.
        allocation: How ranks are spread; None chooses `global` where gradients can be had, else `uniform`.
        outputs: `gradient` weighs output directions by the loss gradient, `equal` does not; None chooses
            `gradient` for whitened and anchored with global allocation.
        select: Which matrices (see `kanna.models.selection`).
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

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: float | None = Field(default=None, gt=0.0, le=1.0)
    rank: int | None = Field(default=None, ge=1)
    method: Method | None = None
    allocation: Allocation | None = None
    outputs: Literal["gradient", "equal"] | None = None
    select: str = "all"
    storage: Literal["pair", "pivot"] = "pair"
    align: int = Field(default=8, ge=1)
    floor: float = Field(default=0.5, ge=0.0, le=1.0)
    ridge: float = Field(default=1e-3, ge=0.0)
    bias_correction: bool | None = None
    refine: int = Field(default=0, ge=0)
    tokens: int = Field(default=32_768, ge=256)
    gradient_tokens: int = Field(default=16_384, ge=1)
    context: int | None = Field(default=None, ge=8)
    batch: int = Field(default=8, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.keep is None) == (self.rank is None):
            raise ValueError("give either keep or rank")
        if self.method in ("plain", "asvd", "fwsvd") and self.outputs == "gradient":
            raise ValueError(f"outputs=gradient goes with whitened and anchored, not with {self.method}")
        return self

    def resolved(self, has_text: bool, gradients: bool) -> "LowRankConfig":
        """The same with every None of method, allocation and outputs decided.

        Args:
            has_text: Whether calibration text was given.
            gradients: Whether gradients of the whole model can be had.
        """
        low = self.keep is not None and self.keep < ANCHOR_BELOW
        method = self.method or ("anchored" if low else "whitened")
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
