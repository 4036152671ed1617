"""A model trained on the rows of several tasks at once: what merging their experts is an alternative to."""

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# Batches that are cut from rows sorted by length, so that little is padding.
_POOL = 16
_WARMUP, _CLIP, _DECAY = 0.05, 1.0, 0.01
_IGNORED = -100
# Of each row all tokens, and how many are of the prompt.
Encoded = list[tuple[list[int], int]]


def fine_tuned(
    base: str, rows: Sequence[Mapping[str, Any]], out: Path, steps: int, batch: int, rate: float, seed: int
) -> int:
    """Train all weights on the answers of rows, and write the model.

    The loss is that of the answers' tokens; AdamW, a tenth of the steps' learning rate left in the end.

    Args:
        rows: With `prompt` and `answer`.
        out: New directory.

    Returns:
        Tokens that the model was run on.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    dtype = AutoModelForCausalLM.from_pretrained(base).dtype
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=_DECAY, betas=(0.9, 0.95))
    warm = max(1, int(_WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, 1 - 0.9 * step / steps)
    )
    batches = _batches([_encoded(tokenizer, row) for row in rows], batch, seed)
    with torch.random.fork_rng():  # a model may drop some of its values out
        torch.manual_seed(seed)
        tokens = _trained(model, optimiser, schedule, batches, steps)
    model.to(dtype).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (Path(base) / name).exists():
            shutil.copy(Path(base) / name, out / name)
    return tokens


def _trained(model: Any, optimiser: Any, schedule: Any, batches: Iterator[Encoded], steps: int) -> int:
    """Tokens of so many steps."""
    tokens = 0
    for some in islice(batches, steps):
        tokens += sum(len(ids) for ids, _ in some)
        model(**_padded(some)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return tokens


def _encoded(tokenizer: Any, row: Mapping[str, Any]) -> tuple[list[int], int]:
    """Tokens of prompt and answer, and how many are of the prompt."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
    return [*prompt, *answer], len(prompt)


def _batches(rows: Encoded, size: int, seed: int) -> Iterator[Encoded]:
    """Without end; rows of about one length together."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(rows, len(rows))
        cut = []
        for first in range(0, len(order), size * _POOL):
            pool = sorted(order[first : first + size * _POOL], key=lambda row: len(row[0]))
            cut += [pool[start : start + size] for start in range(0, len(pool), size)]
        draw.shuffle(cut)
        yield from cut


def _padded(rows: Encoded) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for number, (tokens, prompt) in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        mask[number, : len(tokens)] = 1
        labels[number, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
