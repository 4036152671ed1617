"""What can be said about Hi-Merging; imports nothing heavy."""

from __future__ import annotations

from typing import Any, Literal

from pydantic.config import JsonDict

from kanna.configuration import Configuration, setting

_STAGES: JsonDict = {"group": "Stages", "metavar": "NAME"}
_NUMBER: JsonDict = {"group": "Stages"}
_GRID: JsonDict = {"group": "Stages", "metavar": "VALUES"}
_CHOICE: JsonDict = {"group": "Choice"}
MODEL, LAYER, BOTH = "model", "layer", "both"
# What the first stage tries, and what becomes of an expert's difference where there is no first stage.
_TRIED, _WHOLE = "0.3,0.6,1", "1"
# Settings that say how tasks choose.
OF_TASKS = ("rounds", "share", "split_seed", "max_evaluations", "drop_useless")


class HiOptions(Configuration):
    """How experts are merged."""

    stages: Literal["model", "layer", "both"] = setting(
        LAYER, "layer (resolve conflicts of blocks), model (prune and scale each expert), or both.", _STAGES
    )
    p: str | None = setting(
        None,
        "Shares of an expert's difference that may stay, with --stages model or both: 0.5,1, or 0.1:1:0.1 as "
        f"in the paper; by default {_TRIED}. With --data-free one share (1).",
        _GRID,
    )
    s: str | None = setting(None, "By which it may be multiplied, likewise.", _GRID)
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

    @property
    def tried(self) -> tuple[str, str]:
        """p and s as they are used: all of a difference where no stage tries others and nothing is said."""
        usual = _WHOLE if self.data_free or self.stages == LAYER else _TRIED
        return (usual if self.p is None else self.p), (usual if self.s is None else self.s)

    @property
    def used(self) -> dict[str, Any]:
        """What a result was made with, every default decided; without what has no part in it."""
        kept, scales = self.tried
        settings = {**self.model_dump(mode="json"), "p": kept, "s": scales}
        if not self.data_free:
            return settings
        return {name: value for name, value in settings.items() if name not in OF_TASKS} | {"rounds": 1}
