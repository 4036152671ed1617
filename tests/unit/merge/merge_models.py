"""Small random models that can be merged, and what merging them must give, by plain arithmetic in float64."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from kanna.methods.merge.rules.operation import Operation

VOCABULARY = 400


def save_model(
    directory: Path, seed: int, dtype: torch.dtype, like: Path | None = None, layers: int = 2
) -> Path:
    """A Llama; one that is `like` another differs from it in steps of equal size."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(directory)
    if like is not None:
        origin, random = load_file(like / "model.safetensors"), torch.Generator().manual_seed(seed)
        values = {
            name: (value.float() + torch.randint(-4, 5, value.shape, generator=random) * 2.0**-8).to(dtype)
            for name, value in origin.items()
        }
        save_file(values, directory / "model.safetensors", {"format": "pt"})
    tokens = {f"t{number}": number for number in range(VOCABULARY)}
    Tokenizer(WordLevel(tokens, unk_token="t0")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return directory


def weights(directory: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def largest(values: Sequence[float], density: float) -> list[float]:
    """The largest magnitudes, the lowest index first where they are equal; 0 elsewhere."""
    k = 0 if density == 0 else max(1, math.floor(density * len(values)))
    chosen = set(sorted(range(len(values)), key=lambda index: (-abs(values[index]), index))[:k])
    return [value if index in chosen else 0.0 for index, value in enumerate(values)]


def by_ties(
    base: Sequence[float],
    models: Sequence[Sequence[float]],
    given: Sequence[float],
    densities: Sequence[float],
    normalize: bool,
    scale: float,
) -> list[float]:
    pruned = [
        largest([x - b for x, b in zip(model, base, strict=True)], density)
        for model, density in zip(models, densities, strict=True)
    ]
    result = []
    for index, origin in enumerate(base):
        parts = [(weight * one[index], weight) for one, weight in zip(pruned, given, strict=True)]
        positive = sum(part for part, _ in parts) >= 0
        agreeing = [(part, w) for part, w in parts if (part > 0 if positive else part < 0)]
        change = sum(part for part, _ in agreeing)
        if normalize and agreeing:
            change /= sum(weight for _, weight in agreeing)
        result.append(origin + scale * change)
    return result


def nearest(values: Sequence[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def recipe(method: str, models: Mapping[Path, Mapping[str, object]], **top: object) -> dict[str, object]:
    entries = [{"model": str(path), "parameters": dict(given)} for path, given in models.items()]
    return {"merge_method": method, "models": entries, **top}


def parts(values: Tensor, size: int) -> tuple[Tensor, ...]:
    return values.split(size)


def run(operation: Operation, models: list[Tensor], size: int) -> Tensor:
    """What an operation makes of tensors that come in chunks of a size."""
    for number in range(operation.looks):
        for chunk in zip(*(parts(one, size) for one in models), strict=True):
            operation.look(number, [one.clone() for one in chunk])
    chunks = zip(*(parts(one, size) for one in models), strict=True)
    return torch.cat([operation.merged([one.clone() for one in chunk]) for chunk in chunks])
