"""What the user can say about Basel; every default is decided here."""

import math
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator
from pydantic.config import JsonDict

from kanna.configuration import SEEDS, Configuration, Numbers, setting

Importance = Literal["fisher", "taylor", "sigma", "bsi"]

# Events of part 1 where the user leaves them to us: at most so many, and no more than one in so many steps.
MOST_EVENTS = 100
STEPS_PER_EVENT = 8
# The same of bsi, whose events cost as many gradients again as there are probes, twice.
MOST_EVENTS_OF_BSI = 10
PROBES = 8
# Extra bases of a matrix: one for so many of its smaller side.
PER_EXTRA_BASIS = 128

_BUDGET: JsonDict = {"group": "Which and how much"}
_DATA: JsonDict = {"group": "Data"}
_HOW: JsonDict = {"group": "How"}
_TRAIN: JsonDict = {"group": "Training"}
_FILE: JsonDict = {**_DATA, "metavar": "FILE"}
_NAME: JsonDict = {**_HOW, "metavar": "NAME"}


# Of the published scripts for models of 7 billion parameters.
_PAPER_RATE = 2e-5
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "importance": "sigma",
        "learn": "roots",
        "beside": True,
        "prune_events": 100,
        "extra_rank": 32,
        "rate": _PAPER_RATE,
        "factor_rate": _PAPER_RATE,
    },
    "weights-only": {"extra_rank": 0, "epochs": (1, 2, 0)},
}


class BaselConfig(Configuration):
    """Configuration of the step `basel`."""

    preset: Literal["paper", "weights-only"] | None = setting(
        None,
        "Defaults as published (paper), or no new bases and no part 2 (weights-only).",
        {**_HOW, "metavar": "NAME"},
    )
    data: Path = setting(..., "Rows of the task to learn from: prompt and answer, or choices.", _FILE)
    keep: float | None = setting(
        None, "Share of the parameters stored now for the selected matrices.", _BUDGET, gt=0.0, le=1.0
    )
    keep_sigma: float | None = setting(
        None,
        "In place of --keep, the paper's: share of each matrix' sum of weights that stays.",
        _BUDGET,
        gt=0.0,
        le=1.0,
    )
    start: Path | None = setting(
        None,
        "In place of --keep: a low-rank directory of the same model, whose factors are trained as long.",
        {**_BUDGET, "metavar": "DIR"},
    )
    select: str = setting(
        "all", "Which matrices: 'mlp', 'q,k,v@4-', 'all,lm_head', 're:REGEX'.", {**_BUDGET, "metavar": "EXPR"}
    )
    importance: Importance = setting(
        "fisher",
        "What a basis is worth: fisher (default), taylor or bsi, expected loss; sigma, its weight.",
        _NAME,
    )
    basis: Literal["plain", "whitened"] = setting(
        "plain", "Singular vectors (plain), or directions of the outputs on the task (whitened).", _NAME
    )
    prune_events: int | None = setting(
        None,
        "In how many steps bases are dropped; by default part 1's steps / 8, at most 100 (of bsi 10).",
        _HOW,
        ge=1,
    )
    l1: float = setting(
        0.0, "Make weights of bases smaller: times their sum against what it was, in the loss.", _HOW, ge=0.0
    )
    extra_rank: int | None = setting(
        None, "New bases of each matrix; by default one for every 128 of its smaller side.", _HOW, ge=0
    )
    epochs: Numbers = setting(
        (1, 2, 3),
        "Over the data: before bases are dropped, while they are, and of the factors afterwards.",
        {**_TRAIN, "metavar": "A,B,C", "text": True},
    )
    steps: int | None = setting(
        None, "Of all parts together, divided as --epochs are, where data are large.", _TRAIN, ge=3
    )
    loss: Literal["ce", "kl"] = setting(
        "ce",
        "The right tokens (ce), or the predictions of the model as it was (kl).",
        {**_TRAIN, "metavar": "NAME"},
    )
    learn: Literal["relative", "roots"] = setting(
        "relative",
        "Weights relative to what they were, or, as the paper, the roots of the weights themselves.",
        {**_TRAIN, "metavar": "NAME"},
    )
    beside: bool = setting(False, "Train norms, biases and embeddings too, as the paper's code does.", _TRAIN)
    rows: int = setting(16, "Rows a step.", _TRAIN, ge=1)
    rate: float = setting(0.01, "Of the weights of bases, relative to what they were.", _TRAIN, gt=0.0)
    factor_rate: float = setting(1e-3, "Of new bases, of the factors, and of what is beside.", _TRAIN, gt=0.0)
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
        "float32",
        "Of products in training (bfloat16 where the machine has it); what is trained stays float32.",
        {**_TRAIN, "metavar": "NAME"},
    )
    recompute: bool = setting(False, "Less memory: activations are computed twice.", _TRAIN)
    seed: int = setting(0, "Of all that is drawn.", {"group": "Running"}, **SEEDS)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, settings: Any) -> Any:
        """A preset says what is not said otherwise."""
        if not isinstance(settings, dict) or settings.get("preset") is None:
            return settings
        given = {key: value for key, value in settings.items() if value is not None}
        return {**PRESETS.get(given["preset"], {}), **given}

    @field_validator("epochs")
    @classmethod
    def _three(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if len(epochs) != 3 or min(epochs) < 0 or epochs[0] + epochs[1] == 0:
            raise ValueError("epochs are three numbers such as 1,2,3, the first two not both 0")
        return epochs

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if sum(given is not None for given in (self.keep, self.keep_sigma, self.start)) != 1:
            raise ValueError("give one of keep, keep_sigma and start")
        if self.keep_sigma is not None and self.importance != "sigma":
            raise ValueError("keep_sigma goes with importance sigma")
        if self.l1 and self.start is not None:
            raise ValueError("l1 is for weights of bases, and what start gives has none")
        return self

    @model_validator(mode="after")
    def _dropping_takes_steps(self) -> Self:
        if self.start is None and not self.keeps_all and self.epochs[1] == 0:
            raise ValueError("bases are dropped in the second of the epochs, which must not be 0")
        return self

    @property
    def keeps_all(self) -> bool:
        return self.keep == 1.0 or self.keep_sigma == 1.0

    def steps_of(self, per_epoch: int) -> tuple[int, int, int]:
        """Steps before bases are dropped, while they are, and of the factors."""
        total = sum(self.epochs)
        bounds = [0]
        for done in accumulate(self.epochs):
            bounds.append(per_epoch * done if self.steps is None else round(self.steps * done / total))
        keeping, dropping, factors = (b - a for a, b in pairwise(bounds))
        return keeping, dropping, factors

    @property
    def part_1_factor(self) -> float:
        """What the paper multiplies the rate of part 1 with: the mean of sqrt(1 / kept) over its epochs."""
        share = self.keep_sigma or self.keep or 1.0
        if self.preset != "paper" or share == 1.0:
            return 1.0
        epochs = self.epochs[0] + self.epochs[1]
        root = share**-0.5
        return 2 * (root - 1) / -math.log(share) * (1 - 1 / epochs) + 1 / epochs

    @property
    def part_2_factor(self) -> float:
        """The same of part 2: sqrt(1 / kept)."""
        share = self.keep_sigma or self.keep or 1.0
        return float(share**-0.5) if self.preset == "paper" else 1.0
