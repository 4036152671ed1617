"""Loading in one call, and what to give PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from kanna.checkpoint import lineage
from kanna.checkpoint.applied import ACTIVE, put_chosen
from kanna.checkpoint.reader import Checkpoint, refuse_eight_bits
from kanna.errors import InputError
from kanna.forms import FormModule
from kanna.models.skeleton import skeleton

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load(
    model: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    verify: bool = True,
    scales: str | Path | None = ACTIVE,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model, compressed or not, as the class of its `architectures`, with its tokenizer.

    Args:
        model: A directory, or a hub id in the local cache. Nothing is fetched, no code of the model is run.
        dtype: "auto" keeps that of the files.
        device_map: As in transformers; None is the CPU.
        verify: First compare the files with the sha256 that kanna.json records (reads them once more).
        scales: Name of a set of scales in the directory; None or "base" for none. By default the one in use.

    Returns:
        The model in evaluation mode, and its tokenizer, or None where the directory has none.

    Raises:
        InputError: Whatever is wrong with the directory; see `Checkpoint.open` and `lineage.verify`. Weights
            that its files do not hold: transformers itself would only warn, and initialise them at random.
    """
    checkpoint = Checkpoint.open(model)
    if verify:
        lineage.verify(checkpoint.directory)
    return load_weights(checkpoint, dtype, device_map, scales), tokenizer_of(checkpoint.directory)


def load_weights(
    checkpoint: Checkpoint,
    dtype: str | torch.dtype,
    device_map: Any = None,
    scales: str | Path | None = ACTIVE,
) -> PreTrainedModel:
    """The model of an opened checkpoint in evaluation mode; its files are taken as they are.

    Args:
        dtype: "auto" keeps that of the files.
        device_map: As in transformers; None is the CPU.
        scales: Name or folder of a set of scales; None for none. By default the one in use.

    Raises:
        InputError: The files do not hold a weight: transformers itself would initialise it at random. Or
            they hold numbers of eight bits, and no word of their scales.
    """
    directory = checkpoint.directory
    if "quantization_config" not in checkpoint.config:
        refuse_eight_bits(checkpoint, checkpoint.name)
    architecture = type(skeleton(directory))
    loaded, report = architecture.from_pretrained(  # type: ignore[attr-defined]
        directory, dtype=dtype, device_map=device_map, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise lacks(directory, missing, architecture.__name__)
    if scales != ACTIVE:
        put_chosen(loaded, directory, scales)
    return loaded


def lacks(directory: Path, missing: Sequence[str], architecture: str) -> InputError:
    """What to say of weights that the files do not hold, though a class needs them."""
    more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
    return InputError(
        f"{directory} lacks the tensor {missing[0]}{more}, which {architecture} needs",
        "fetch the whole model, or name the class that was saved in architectures of config.json",
    )


def lora_targets(model: nn.Module) -> list[str]:
    """Full names of the linear layers inside the compressed ones, for `LoraConfig(target_modules=...)`.

    Returns:
        Names for `target_modules`.

    Raises:
        InputError: The model has no compressed layer.
    """
    targets = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, FormModule)
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
    ]
    if not targets:
        raise InputError(
            "this model has no layer in a form of kanna", "load one that kanna wrote, or name your own layers"
        )
    return list(dict.fromkeys(targets))


def tokenizer_of(directory: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model directory; None where there is none.

    Raises:
        InputError: It cannot be read.
    """
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        # Without the last word transformers asks on the terminal whether to run code of the model.
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(
            f"the tokenizer in {directory} cannot be loaded: {error}", "copy it from the original model again"
        ) from error
