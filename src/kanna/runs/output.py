"""Write the output directory: the source's tensors with the replaced modules in their place."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kanna.checkpoint.declared import quantization_config
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.writer import copy_side_files, write_json, write_tensors
from kanna.forms import Form
from kanna.models.names import tensor_name


@dataclass(frozen=True)
class Layout:
    """Which file tensors are copied and which come from the pieces.

    Args:
        specs: Of all tensors to be written, in the source's order.
        copied: Names taken from the source as they are.
        renamed: Full parameter name of a piece -> name in the files.
    """

    specs: tuple[TensorSpec, ...]
    copied: tuple[str, ...]
    renamed: Mapping[str, str]

    @property
    def bytes(self) -> int:
        return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in self.specs)

    @property
    def parameters(self) -> int:
        return sum(math.prod(spec.shape) for spec in self.specs)


Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def plan_layout(
    checkpoint: Checkpoint, forms: Mapping[str, Form], pieces: Shapes, base_model_prefix: str
) -> Layout:
    """Put every piece where the module's first tensor lay, and drop the module's dense tensors.

    Args:
        forms: Module path -> its new form.
        pieces: Full parameter name -> dtype and shape: those of the forms, and parameters that keep their
            shape but not their values.
    """
    renamed: dict[str, str] = {}
    owner: dict[str, list[str]] = {}
    dropped: set[str] = set()
    for full in pieces:
        module = _module_of(full, forms)
        anchor = f"{module}.weight" if module else full
        at = tensor_name(anchor, checkpoint.tensors, base_model_prefix)
        if at is None:
            raise KeyError(anchor)
        renamed[full] = f"{at.removesuffix('.weight')}.{full[len(module) + 1 :]}" if module else at
        owner.setdefault(at, []).append(full)
        dropped |= {at, f"{at.removesuffix('.weight')}.bias"} if module else {at}
    specs: list[TensorSpec] = []
    for name in checkpoint.tensors:
        for full in owner.get(name, ()):
            dtype, shape = pieces[full]
            specs.append(TensorSpec(renamed[full], dtype, shape))
        if name not in dropped:
            specs.append(TensorSpec(name, checkpoint.dtype(name), checkpoint.shape(name)))
    copied = tuple(name for name in checkpoint.tensors if name not in dropped)
    return Layout(tuple(specs), copied, renamed)


def write_model(
    directory: Path,
    checkpoint: Checkpoint,
    forms: Mapping[str, Form],
    layout: Layout,
    pieces: Iterable[tuple[str, Tensor]],
) -> None:
    """Weights, config.json, tokenizer and other side files.

    Args:
        pieces: (full parameter name, tensor) of all that `plan_layout` was told of.
    """
    renamed = ((layout.renamed[full], tensor) for full, tensor in pieces)
    write_tensors(directory, layout.specs, itertools.chain(checkpoint.stream(layout.copied), renamed))
    config = dict(checkpoint.config)
    if forms:
        config["quantization_config"] = quantization_config(forms)
    write_json(directory / "config.json", config)
    copy_side_files(checkpoint.directory, directory)


def _module_of(full: str, forms: Mapping[str, Form]) -> str:
    """The replaced module that a parameter belongs to; empty for one that kept its name and shape."""
    path = full
    while path:
        path = path.rpartition(".")[0]
        if path in forms:
            return path
    return ""
