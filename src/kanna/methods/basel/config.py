"""What the user can say about Basel; every default is decided here."""

from pathlib import Path
from typing import Literal, Self

from pydantic import field_validator, model_validator
from pydantic.config import JsonDict

from kanna.configuration import Configuration, Numbers, setting

Importance = Literal["fisher", "taylor", "sigma"]

# Events of part 1 where the user leaves them to us: at most so many, and no more than one in so many steps.
MOST_EVENTS = 100
STEPS_PER_EVENT = 8
# Extra bases of a matrix: one for so many of its smaller side.
PER_EXTRA_BASIS = 128

_BUDGET: JsonDict = {"group": "Which and how much"}
_DATA: JsonDict = {"group": "Data"}
_HOW: JsonDict = {"group": "How"}
_TRAIN: JsonDict = {"group": "Training"}
_FILE: JsonDict = {**_DATA, "metavar": "FILE"}
_NAME: JsonDict = {**_HOW, "metavar": "NAME"}


class BaselConfig(Configuration):
    """Configuration of the step `basel`."""

    data: Path = setting(..., "Rows of the task to learn from: prompt and answer, or choices.", _FILE)
    keep: float | None = setting(
        None, "Share of the parameters stored now for the selected matrices.", _BUDGET, gt=0.0, le=1.0
    )
    start: Path | None = setting(
        None,
        "In place of --keep: a low-rank directory of the same model, whose factors are trained as long.",
        {**_BUDGET, "metavar": "DIR"},
    )
    select: str = setting(
        "all", "Which matrices: 'mlp', 'q,k,v@4-', 'down@-1', 're:REGEX'.", {**_BUDGET, "metavar": "EXPR"}
    )
    importance: Importance = setting(
        "fisher",
        "What a basis is worth: fisher (default) or taylor, expected loss; sigma, its weight, as the paper.",
        _NAME,
    )
    prune_events: int | None = setting(
        None, "In how many steps bases are dropped; by default part 1's steps / 8, at most 100.", _HOW, ge=1
    )
    extra_rank: int | None = setting(
        None, "New bases of each matrix; by default one for every 128 of its smaller side.", _HOW, ge=0
    )
    epochs: Numbers = setting(
        (1, 2, 3),
        "Over the data: before bases are dropped, while they are, and of the factors afterwards.",
        {**_TRAIN, "metavar": "A,B,C", "text": True},
    )
    rows: int = setting(16, "Rows a step.", _TRAIN, ge=1)
    rate: float = setting(0.01, "Of the weights of bases, relative to what they were.", _TRAIN, gt=0.0)
    factor_rate: float = setting(1e-3, "Of new bases and of the factors.", _TRAIN, gt=0.0)
    replay: Path | None = setting(None, "Text that must not be forgotten, learnt beside the rows.", _FILE)
    replay_share: float = setting(
        0.25, "Share of a step's rows that is replayed text.", _DATA, gt=0.0, lt=1.0
    )
    validation: Path | None = setting(
        None, "Rows to choose the best state on; by default a tenth of the data is split off.", _FILE
    )
    allow_overlap: bool = setting(False, "Learn rows that are asked in --task, too.", _DATA)
    chat: bool = setting(False, "Put prompts into the chat template.", _DATA)
    context: int | None = setting(None, "Most tokens of a row, and read on --task.", _DATA, ge=8)
    recompute: bool = setting(False, "Less memory: activations are computed twice.", _TRAIN)
    seed: int = setting(0, "Of all that is drawn.", {"group": "Running"})

    @field_validator("epochs")
    @classmethod
    def _three(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if len(epochs) != 3 or min(epochs) < 0 or epochs[0] + epochs[1] == 0:
            raise ValueError("epochs are three numbers such as 1,2,3, the first two not both 0")
        return epochs

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.keep is None) == (self.start is None):
            raise ValueError("give either keep or start")
        return self

    @model_validator(mode="after")
    def _dropping_takes_steps(self) -> Self:
        if self.keep is not None and self.keep < 1.0 and self.epochs[1] == 0:
            raise ValueError("bases are dropped in the second of the epochs, which must not be 0")
        return self
