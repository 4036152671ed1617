"""What can be said about Hi-Merging; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic.config import JsonDict

from kanna.configuration import Configuration, setting

_STAGES: JsonDict = {"group": "Stages", "metavar": "NAME"}
_NUMBER: JsonDict = {"group": "Stages"}
_GRID: JsonDict = {"group": "Stages", "metavar": "VALUES"}
_CHOICE: JsonDict = {"group": "Choice"}
MODEL, LAYER, BOTH = "model", "layer", "both"


class HiOptions(Configuration):
    """How experts are merged."""

    stages: Literal["model", "layer", "both"] = setting(
        LAYER, "layer (resolve conflicts of blocks), model (prune and scale each expert), or both.", _STAGES
    )
    p: str = setting(
        "0.3,0.6,1",
        "Shares of an expert's difference that may stay: 0.5,1, or 0.1:1:0.1 as in the paper.",
        _GRID,
    )
    s: str = setting("0.3,0.6,1", "By which it may be multiplied, likewise.", _GRID)
    scope: Literal["tensor", "layer", "model"] = setting(
        "tensor",
        "Whose largest entries stay: each tensor's, each layer's, or the model's (with --stages model).",
        _STAGES,
    )
    combine: Literal["sum", "mean"] = setting("sum", "Of the experts' differences: sum or mean.", _STAGES)
    consensus: Literal["none", "ties"] = setting(
        "none", "none, or ties: entries against the elected sign are left out.", _STAGES
    )
    data_free: bool = setting(
        False,
        "Ask no task: blocks are ranked by sign conflicts of the weights alone. This is not the paper.",
        _STAGES,
    )
    group: int = setting(1, "Consecutive layers that are one block.", _NUMBER, ge=1)
    tau: float | None = setting(
        None,
        "What a task may lose in a block before it is hurt; by default one standard error.",
        _NUMBER,
    )
    rounds: int = setting(3, "Over all blocks, at most.", _NUMBER, ge=1)
    max_evaluations: int | None = setting(
        None, "No further round is begun that could take more.", _NUMBER, ge=1
    )
    share: float = setting(
        0.2, "Of a task's rows, for what chooses.", {**_CHOICE, "flag": "--calibration-share"}
    )
    split_seed: int = setting(0, "Of that split.", _CHOICE)
    drop_useless: bool = setting(
        False, "Leave out experts that gain nothing on their own task, in place of an error.", _CHOICE
    )
