"""Tiny models of every family with a tokenizer, text to calibrate them on, and the plainest way to run kanna."""

import hashlib
import random
from pathlib import Path
from typing import Any

import family_configs
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from kanna.calibration.windows import Windows
from kanna.checkpoint.reader import Checkpoint
from kanna.models.inventory import Inventory, inventory
from kanna.models.skeleton import skeleton
from kanna.recipe.lowrank import LowRankResult, lowrank, parse_config

# Sizes of tiny models are no multiples of 8, and a few hundred tokens are plenty for them.
SETTINGS: dict[str, Any] = {"align": 1, "context": 24, "batch": 6, "tokens": 512}


def tokenizer(vocabulary: int = family_configs.VOCAB) -> PreTrainedTokenizerFast:
    """One token a word: w3 is token 3."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    words = special | {f"w{i}": i for i in range(3, vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="w3"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w3"
    )


def save(model: nn.Module, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)  # type: ignore[operator]
    tokenizer(model.config.vocab_size).save_pretrained(directory)  # type: ignore[union-attr, arg-type]
    return directory


def family(name: str, directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A model of `family_configs` on disk, with weights larger than at birth: blocks then do something."""
    model = family_configs.model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return save(model.to(dtype), directory, **options)


def words(count: int, seed: int = 0, vocabulary: int = family_configs.VOCAB) -> str:
    """Words that follow one another by a rule, half of the time."""
    draw, said = random.Random(seed), [3]
    for _ in range(count - 1):
        free = draw.random() < 0.5
        said.append(draw.randrange(3, vocabulary) if free else 3 + (said[-1] * 7) % (vocabulary - 3))
    return " ".join(f"w{i}" for i in said)


def text(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """A file of rows of 9 to 23 words."""
    lengths = [9 + (i * 5) % 15 for i in range(rows)]
    path.write_text("".join(f'{{"text": "{words(n, seed + i)}"}}\n' for i, n in enumerate(lengths)))
    return path


def windows(count: int = 7, length: int = 20, padded: bool = False, seed: int = 0) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, family_configs.VOCAB, (count, length), generator=generator)
    sizes = length - (torch.arange(count) * 3 % 8 if padded else torch.zeros(count, dtype=torch.int64))
    mask = torch.arange(length)[None, :] < sizes[:, None]
    return Windows(torch.where(mask, ids, 0), mask)


def compress(model: Path, out: Path, calibration: Path | None, cache: Path, **given: Any) -> LowRankResult:
    """`lowrank` with the settings for tiny models; arguments of `lowrank` itself are told apart by name."""
    own = ("force", "resume", "dry_run", "progress", "device")
    options = {key: given.pop(key) for key in own if key in given}
    return lowrank(
        model, out, parse_config(SETTINGS | given), calibration=calibration, cache=cache, **options
    )


def opened(directory: Path) -> tuple[Checkpoint, Inventory]:
    return Checkpoint.open(directory), inventory(skeleton(directory))


def hashes(directory: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def whole(directory: Path) -> nn.Module:
    """The model loaded by transformers alone, float32."""
    architecture = type(skeleton(directory))
    loaded: nn.Module = architecture.from_pretrained(directory, dtype=torch.float32)  # type: ignore[attr-defined]
    return loaded.eval()
