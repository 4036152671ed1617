"""An adapter in the form of PEFT's files: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.checkpoint.reader import SINGLE
from kanna.checkpoint.writer import spec_of, write_json, write_tensors
from kanna.methods.merge.adapter import CONFIG, WEIGHTS

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Layer:
    """A layer that is changed by a product.

    Args:
        module: Its path in the class of the model.
        expand: (rows of the weight, rank).
        reduce: (rank, columns of the weight).
        embedding: Whether it looks tokens up.
        inputs_first: Whether the rows of the weight are its inputs (Conv1D).
    """

    module: str
    expand: Tensor
    reduce: Tensor
    embedding: bool = False
    inputs_first: bool = False

    @property
    def rank(self) -> int:
        return self.expand.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """By their names in the file; the product of embeddings and of Conv1D is laid the other way."""
        name = f"{_PREFIX}{self.module}.lora_"
        if self.embedding:
            return {f"{name}embedding_A": self.expand.T, f"{name}embedding_B": self.reduce.T}
        if self.inputs_first:
            return {f"{name}A.weight": self.expand.T, f"{name}B.weight": self.reduce.T}
        return {f"{name}A.weight": self.reduce, f"{name}B.weight": self.expand}


@dataclass(frozen=True)
class Contents:
    """What goes into an adapter.

    Args:
        layers: Changed by products; their scale is 1.
        saved: Path of a module that is saved whole -> its tensors by their names in it.
        biases: Path of a layer that is changed by a product -> its bias.
    """

    layers: tuple[Layer, ...]
    saved: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Everything in the file, by name; factors in float32."""
        found = {
            name: values.to(torch.float32)
            for layer in self.layers
            for name, values in layer.tensors().items()
        }
        for module, tensors in self.saved.items():
            found |= {f"{_PREFIX}{module}.{name}": values for name, values in tensors.items()}
        found |= {f"{_PREFIX}{module}.base_layer.bias": values for module, values in self.biases.items()}
        return {name: values.clone().contiguous() for name, values in found.items()}

    def config(self, base: str) -> dict[str, Any]:
        """What PEFT reads; ranks that are not the most frequent one are listed by layer, alpha is the rank.

        Args:
            base: Name of the model that it belongs to.
        """
        rank = _most_frequent(layer.rank for layer in self.layers)
        others = {layer.module: layer.rank for layer in self.layers if layer.rank != rank}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": [layer.module for layer in self.layers],
            "modules_to_save": list(self.saved) or None,
            "fan_in_fan_out": any(layer.inputs_first for layer in self.layers),
            "bias": "lora_only" if self.biases else "none",
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
            "inference_mode": True,
        }


def _most_frequent(ranks: Iterable[int]) -> int:
    counts: dict[int, int] = {}
    for rank in ranks:
        counts[rank] = counts.get(rank, 0) + 1
    return max(counts, key=lambda rank: (counts[rank], rank), default=1)


def write_adapter(directory: Path, contents: Contents, base: str) -> None:
    """Write both files."""
    tensors = contents.tensors()
    specs = [spec_of(name, tensor) for name, tensor in tensors.items()]
    write_tensors(directory, specs, tensors.items(), max_shard_bytes=sys.maxsize)
    (directory / SINGLE).rename(directory / WEIGHTS)
    write_json(directory / CONFIG, contents.config(base))
