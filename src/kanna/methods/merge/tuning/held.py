"""A merge in memory: the arithmetic of a merge that is written, without its files of weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kanna.checkpoint.loader import lacks
from kanna.checkpoint.reader import Checkpoint
from kanna.methods.merge.adapted import plain
from kanna.methods.merge.cuts import cuts_of
from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.streaming import Stream
from kanna.methods.merge.written import beside_weights
from kanna.models.device import device_of, dtype_of
from kanna.models.skeleton import read_config, skeleton
from kanna.tasks.options import EvalOptions


def tensors_of(plan: MergePlan, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a merge, rounded as they would be written.

    Args:
        names: Which; None for all.
    """
    cuts = cuts_of(plan, None, names=names)
    return {
        tensor.spec.name: torch.cat([*Stream(plan, tensor, cuts, hashed=False).pieces()]).reshape(
            tensor.spec.shape
        )
        for tensor in plan.tensors
        if names is None or tensor.spec.name in names
    }


def shell(plan: MergePlan, directory: Path) -> Checkpoint:
    """What a merge is but for its weights: a directory with configuration and tokenizer, told as its own."""
    directory.mkdir(parents=True, exist_ok=True)
    beside_weights(plan, directory)
    lead = plain(plan.inputs.lead)
    return replace(lead, directory=directory, config=plan.config)


def model_of(directory: Path, tensors: dict[str, Tensor], options: EvalOptions) -> PreTrainedModel:
    """The model that loading these tensors as files of a directory gives, in evaluation mode.

    Args:
        directory: Of the configuration.

    Raises:
        InputError: A weight is missing.
    """
    architecture = type(skeleton(directory))
    place = None if device_of(options.device).type == "cpu" else options.device
    loaded, report = architecture.from_pretrained(  # type: ignore[attr-defined]
        None,
        config=read_config(directory),
        state_dict=tensors,
        dtype=dtype_of(options.dtype),
        device_map=place,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        raise lacks(directory, missing, architecture.__name__)
    model: PreTrainedModel = loaded
    return model
