"""Write the output directory: the source's tensors with the replaced modules in their place."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kanna.checkpoint.declared import quantization_config
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.writer import copy_side_files, write_json, write_tensors
from kanna.forms import Form
from kanna.methods.lowrank.execute import Outcome
from kanna.methods.lowrank.replace import block_file
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


def plan_layout(checkpoint: Checkpoint, outcome: Outcome, base_model_prefix: str) -> Layout:
    """Put every piece where the module's first tensor lay, and drop the module's dense tensors."""
    pieces = _piece_shapes(outcome)
    renamed: dict[str, str] = {}
    owner: dict[str, list[str]] = {}
    dropped: set[str] = set()
    for full in pieces:
        module = _module_of(full, outcome.forms)
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


def write_model(directory: Path, checkpoint: Checkpoint, outcome: Outcome, layout: Layout) -> None:
    """Weights, config.json, tokenizer and other side files."""
    write_tensors(directory, layout.specs, _tensors(checkpoint, outcome, layout))
    config = dict(checkpoint.config)
    if outcome.forms:
        config["quantization_config"] = quantization_config(outcome.forms)
    write_json(directory / "config.json", config)
    copy_side_files(checkpoint.directory, directory)


def _tensors(checkpoint: Checkpoint, outcome: Outcome, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    yield from checkpoint.stream(layout.copied)
    for layer in range(outcome.blocks):
        for full, tensor in outcome.tensors(layer).items():
            yield layout.renamed[full], tensor


def _piece_shapes(outcome: Outcome) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for layer in range(outcome.blocks):
        found |= outcome.workspace.shapes(block_file(layer))
    return found


def _module_of(full: str, forms: Mapping[str, Form]) -> str:
    """The replaced module that a parameter belongs to; empty for one that kept its name and shape."""
    path = full
    while path:
        path = path.rpartition(".")[0]
        if path in forms:
            return path
    return ""
