"""Tiny quantised models with scales that no quantiser chooses, as after tuning: quantising again shows."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import kanna
from kanna.quant.grid import Codes
from kanna.runs.source import Source

# 96 inputs are three groups of 32 and no multiple of 64.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}


def llama(directory: Path, **changes: Any) -> Path:
    return _saved(transformers.LlamaForCausalLM, transformers.LlamaConfig, directory, changes)


def phi3(directory: Path, **changes: Any) -> Path:
    """Query, key and value are one matrix there."""
    settings = {"pad_token_id": 0, "tie_word_embeddings": True, **changes}
    return _saved(transformers.Phi3ForCausalLM, transformers.Phi3Config, directory, settings)


def quantized(base: Path, out: Path, bits: int = 4, group: int | str = 32, **settings: Any) -> Path:
    """The model in whole numbers, every scale moved and every row's first zero-points at both ends."""
    config = kanna.QuantizeConfig(bits=bits, group=str(group), method="minmax", **settings)
    kanna.quantize(base, out, config)
    moved(out, (1 << bits) - 1)
    return out


def moved(directory: Path, top: int) -> None:
    """Scales of 0.8 to 1.2 of what they were; zero-points of row 0 are 0, those of row 1 the top code."""
    file, generator = directory / "model.safetensors", torch.Generator().manual_seed(1)
    tensors = load_file(file)
    for name, value in tensors.items():
        if name.endswith("weight_scale"):
            value.mul_(0.8 + 0.4 * torch.rand(value.shape, generator=generator))
        if name.endswith("weight_zero_point"):
            value[0], value[1] = 0, top
    save_file(tensors, file, {"format": "pt"})
    (directory / "kanna.json").unlink()


def matrices(directory: Path) -> dict[str, Codes]:
    """Every quantised matrix by the path of its module, as kanna holds it."""
    source = Source.open(directory)
    found = {}
    for path, layer in source.declared.items():
        module = source.module(path)
        found[path] = layer.form.codes(module.state_dict(), layer.geometry.n)  # type: ignore[attr-defined]
    return found


def _saved(model: Any, config: Any, directory: Path, changes: dict[str, Any]) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(config(**(SIZES | changes))).save_pretrained(directory)
    return directory
