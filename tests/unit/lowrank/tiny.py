"""Tiny models of every family with a tokenizer, text to calibrate on, and the plainest way to run kanna."""

import hashlib
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_configs
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from unusual_configs import UNUSUAL, unusual

from kanna.calibration.windows import Windows
from kanna.checkpoint.loader import load
from kanna.checkpoint.reader import Checkpoint
from kanna.forms import dense_weight
from kanna.methods.lowrank.run import lowrank, parse_config
from kanna.models.inventory import Inventory, inventory
from kanna.models.skeleton import skeleton
from kanna.runs.runner import RunResult

LETTERS = (string.ascii_letters + string.digits)[: family_configs.VOCAB - 3]
# Sizes of tiny models are no multiples of 8, and a few hundred tokens are plenty for them.
SETTINGS: dict[str, Any] = {"align": 1, "context": 24, "batch": 6, "tokens": 512}


def tokenizer(vocabulary: int = family_configs.VOCAB) -> PreTrainedTokenizerFast:
    """One token a letter, from 3 on, in a shape that transformers keeps whatever the model's type."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocabulary_ = special | {letter: 3 + i for i, letter in enumerate(LETTERS[: vocabulary - 3])}
    made = Tokenizer(models.BPE(vocabulary_, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def save(model: nn.Module, directory: Path, **options: Any) -> Path:
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    model.save_pretrained(directory, **options)  # type: ignore[operator]
    tokenizer(vocabulary).save_pretrained(directory)  # type: ignore[arg-type]
    return directory


@torch.random.fork_rng(devices=[])
def family(name: str, directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A model of `family_configs` on disk, with weights larger than at birth: blocks then do something."""
    model = _model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return save(model.to(dtype), directory, **options)


def settings_of(name: str) -> PretrainedConfig:
    """Of `family_configs` or `unusual_configs`; experts get sizes that torch's grouped products take."""
    settings = unusual(name) if name in UNUSUAL else family_configs.config(name)
    for key, size in (("moe_intermediate_size", 16), ("shared_expert_intermediate_size", 20)):
        if hasattr(settings, key):
            setattr(settings, key, size)
    return settings


def _model(name: str) -> nn.Module:
    settings = settings_of(name)
    torch.manual_seed(0)
    built: nn.Module = getattr(transformers, settings.architectures[0])(settings)
    return built.eval()


def letters(count: int, seed: int = 0) -> str:
    """Letters that follow one another by a rule, half of the time."""
    draw, said = random.Random(seed), [0]
    for _ in range(count - 1):
        free = draw.random() < 0.5
        said.append(draw.randrange(len(LETTERS)) if free else (said[-1] * 7 + 1) % len(LETTERS))
    return "".join(LETTERS[i] for i in said)


def text(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """A file of rows of 9 to 23 letters."""
    lengths = [9 + (i * 5) % 15 for i in range(rows)]
    path.write_text("".join(f'{{"text": "{letters(n, seed + i)}"}}\n' for i, n in enumerate(lengths)))
    return path


def windows(count: int = 7, length: int = 20, padded: bool = False, seed: int = 0) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, family_configs.VOCAB, (count, length), generator=generator)
    sizes = length - (torch.arange(count) * 3 % 8 if padded else torch.zeros(count, dtype=torch.int64))
    mask = torch.arange(length)[None, :] < sizes[:, None]
    return Windows(torch.where(mask, ids, 0), mask)


def compress(model: Path, out: Path, calibration: Path | None, cache: Path, **given: Any) -> RunResult:
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


def rename(directory: Path, new: Callable[[str], str | None]) -> None:
    """Give the tensors of a single file other names; None drops one."""
    file = directory / "model.safetensors"
    named = {new(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: t for name, t in named.items() if name is not None}, file, metadata={"format": "pt"})


def loaded(directory: Path) -> nn.Module:
    """A model that kanna wrote, in float32 and in evaluation mode."""
    return load(directory, dtype=torch.float32, verify=False)[0].eval()


def product(model: nn.Module, path: str) -> torch.Tensor:
    """The dense weight (m, n) in float64 of a layer in any form."""
    return dense_weight(model.get_submodule(path)).detach().double()
