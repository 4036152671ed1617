"""Share of questions whose greedy answer is exactly the right one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kanna.errors import InputError
from kanna.tasks.data.rows import Row


def answered(model: nn.Module, tokenizer: Any, rows: Sequence[Row], batch: int = 64) -> list[bool]:
    """For each row with prompt and answer, whether greedy decoding would write the answer's tokens.

    Greedy decoding reproduces an answer exactly if at each of its tokens, given the ones before, that token
    is the most likely; so one forward pass scores a row.

    Raises:
        InputError: A row without prompt or answer.
    """
    encoded = [_encode(tokenizer, row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i][0]))
    result = [False] * len(rows)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        for i, right in zip(chosen, _score(model, [encoded[i] for i in chosen]), strict=True):
            result[i] = right
    return result


def _encode(tokenizer: Any, row: Row) -> tuple[list[int], int]:
    """Tokens of prompt and answer together, and where the answer begins.

    Trailing spaces of the prompt belong to the answer: most vocabularies put them before words.
    """
    if not row.prompt or not row.answer:
        raise InputError("a question needs a prompt and an answer", 'use {"prompt": ..., "answer": ...}')
    whole = list(tokenizer(row.text, verbose=False)["input_ids"])
    prompt = list(tokenizer(row.prompt.rstrip(), verbose=False)["input_ids"])
    pairs = zip(whole, prompt, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(whole)))
    return whole, min(shared, len(whole) - 1)


def _score(model: nn.Module, encoded: Sequence[tuple[list[int], int]]) -> list[bool]:
    width = max(len(ids) for ids, _ in encoded)
    device = next(model.parameters()).device
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in encoded], device=device)
    with torch.no_grad():
        best: Tensor = model(ids).logits.argmax(-1)
    return [
        bool((best[i, start - 1 : len(row) - 1] == ids[i, start : len(row)]).all())
        for i, (row, start) in enumerate(encoded)
    ]
