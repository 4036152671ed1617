"""Small random models as experts on tasks of their own: rows that one answers and the base does not."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM

_LAST = 400


def split_words(models: Mapping[str, Path], room: Path) -> dict[str, Path]:
    """The models with a tokenizer that takes words apart."""
    for name, path in models.items():
        shutil.copytree(path, room / name)
        tokenizer = Tokenizer.from_file(str(room / name / "tokenizer.json"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.save(str(room / name / "tokenizer.json"))
    return {name: room / name for name in models}


def next_tokens(model: Path, prompts: torch.Tensor) -> list[int]:
    """Of each prompt the token that a model finds likeliest."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return [int(one) for one in loaded(prompts).logits[:, -1].argmax(-1)]


def rows_of(expert: Path, base: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """Prompts of four words with the expert's answer; of every five the base knows at most one.

    Two neighbouring rows are a group.
    """
    drawn = torch.randint(3, _LAST, (40 * count, 4), generator=torch.Generator().manual_seed(seed))
    mine, theirs = next_tokens(expert, drawn), next_tokens(base, drawn)
    unknown = [number for number in range(len(drawn)) if mine[number] != theirs[number]]
    known = [number for number in range(len(drawn)) if mine[number] == theirs[number]]
    chosen = sorted(unknown[: count - count // 5] + known[: count // 5])
    return [
        {
            "prompt": " ".join(f"t{token}" for token in drawn[number].tolist()),
            "answer": f" t{mine[number]}",
            "group": f"g{place // 2}",
        }
        for place, number in enumerate(chosen)
    ]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def tasks_of(models: Mapping[str, Path], room: Path) -> dict[str, Path]:
    """A task for each of the experts a and b, of rows that it gets right more often than the base."""
    return {
        name: write_rows(room / f"task-{name}.jsonl", rows_of(models[name], models["base"], seed, 60))
        for seed, name in enumerate("ab")
    }
