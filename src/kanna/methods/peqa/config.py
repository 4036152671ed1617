"""What the user can say about tuning; every default is decided here."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator
from pydantic.config import JsonDict

from kanna.checkpoint.set_names import FOLDER, is_name
from kanna.configuration import SEEDS, Configuration, setting

_DATA: JsonDict = {"group": "Data"}
_TRAIN: JsonDict = {"group": "Training"}
_FILE: JsonDict = {**_DATA, "metavar": "FILE"}
_NAME: JsonDict = {**_TRAIN, "metavar": "NAME"}


def _pair(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        low, high = map(float, given.split(","))
    except ValueError:
        raise ValueError("these are no two numbers: write 0.1,10") from None
    return low, high


class TuneConfig(Configuration):
    """Configuration of the step `tune`."""

    data: Path = setting(..., "Rows of the task to learn from: prompt and answer, or choices.", _FILE)
    name: str = setting(..., "Of the set of scales.", {"group": "What is made", "metavar": "NAME"})
    granularity: Literal["channel", "group"] = setting(
        "channel", "What is learnt: a number for each row (channel), or for each group of a row.", _NAME
    )
    loss: Literal["ce", "kl"] = setting(
        "ce", "The right tokens (ce), or the predictions of a teacher (kl).", _NAME
    )
    teacher: Path | None = setting(
        None,
        "Model whose predictions are learnt with kl; by default the one that was quantised.",
        {**_TRAIN, "metavar": "MODEL"},
    )
    epochs: int = setting(3, "Over the data.", _TRAIN, ge=1)
    steps: int | None = setting(None, "In place of --epochs.", _TRAIN, ge=1)
    rows: int = setting(16, "Rows a step.", _TRAIN, ge=1)
    rate: float = setting(0.01, "Relative to what the scales were.", _TRAIN, gt=0.0)
    scale_range: Annotated[tuple[float, float] | None, BeforeValidator(_pair)] = setting(
        None,
        "How far scales may go, times what they were: 0.1,10.",
        {**_TRAIN, "metavar": "LOW,HIGH", "text": True},
    )
    replay: Path | None = setting(None, "Text that must not be forgotten, learnt beside the rows.", _FILE)
    replay_share: float = setting(
        0.25, "Share of a step's rows that is replayed text.", _DATA, gt=0.0, lt=1.0
    )
    text: Path | None = setting(
        None,
        "Text that is not learnt: its loss before and after says what is forgotten. By default a tenth of "
        "--replay.",
        _FILE,
    )
    validation: Path | None = setting(
        None, "Rows to choose the best state on; by default a tenth of the data is split off.", _FILE
    )
    allow_overlap: bool = setting(
        False, "Learn rows that are asked in --task, or stand in --validation or --text, too.", _DATA
    )
    chat: bool = setting(False, "Put prompts into the chat template.", _DATA)
    context: int | None = setting(None, "Most tokens of a row, and read on --task.", _DATA, ge=8)
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "Of products (bfloat16 where the machine has it); scales stay float32.", _NAME
    )
    recompute: bool = setting(False, "Less memory: activations are computed twice.", _TRAIN)
    seed: int = setting(0, "Of all that is drawn.", {"group": "Running"}, **SEEDS)

    @field_validator("name")
    @classmethod
    def _can_be_a_folder(cls, name: str) -> str:
        if not is_name(name):
            raise ValueError("a set is named by letters, digits, - and _, and base is the model without any")
        return name

    @field_validator("scale_range")
    @classmethod
    def _holds_one(cls, pair: tuple[float, float] | None) -> tuple[float, float] | None:
        if pair is not None and not pair[0] <= 1.0 <= pair[1] < float("inf"):
            raise ValueError("the range is of factors such as 0.1,10, and holds 1, where they begin")
        return pair


def folder(config: TuneConfig) -> str:
    """Where the set lies in the directory of its model."""
    return f"{FOLDER}/{config.name}"
