"""What a merge says of itself in `merge.json`; read by reports where no torch is."""

from __future__ import annotations

from typing import Any

from kanna.methods.merge.hi.results import HiOutcome
from kanna.result import Result, Several
from kanna.tasks.verdict.comparison import Comparison

RESULT = "merge.json"


class Differences(Result):
    """Of what models differ by from the base, in a layer or over all.

    Args:
        norm_ratios: Length of each model's difference over that of the base's weights; None without weights.
        cosine: Mean over pairs of models; None where only one differs.
        conflicts: Of the entries that two or more models changed, the share in which their signs differ.
        values: Entries that were looked at.
        layer: Its number, behind "encoder" or "decoder" where there are both; None for tensors outside of
            layers, and for all.
    """

    norm_ratios: Several[float | None]
    cosine: float | None
    conflicts: float | None
    values: int
    layer: int | str | None = None


class Disagreement(Result):
    """How much models disagree.

    Args:
        models: Their names.
        sampled: Whether only some entries of large tensors were looked at.
        all: Over all tensors.
        layers: By layer.
    """

    models: Several[str]
    sampled: bool
    all: Differences
    layers: Several[Differences]


class MergedInput(Result):
    """A model that went in."""

    name: str
    bytes: int
    hash: str
    dtypes: Several[str]
    licence: str | None = None


class Figures(Result):
    """What happened to the values.

    Args:
        kept_share: Entries of differences that went in; None where all do.
        rounding_loss: |output - exact| / |exact - base|; None where nothing changed.
    """

    kept_share: float | None
    rounding_loss: float | None
    tensors_merged: int
    tensors_copied: int


class MergedTask(Result):
    """A merge beside a model that knows some of its tasks.

    Args:
        expert: Its name.
        beside_expert: What is lost.
        beside_base: What is gained; None without a base, or where the base is the expert.
    """

    expert: str
    beside_expert: Comparison
    beside_base: Comparison | None = None


class MergeOutcome(Result):
    """A merge."""

    method: str
    base: str | None
    dtype: str
    inputs: Several[MergedInput]
    figures: Figures
    groups: Several[dict[str, Any]]
    warnings: Several[str]
    bytes_read: int
    bytes_written: int
    disagreement: Disagreement | None = None
    tasks: Several[MergedTask] = ()
    hi: HiOutcome | None = None
