"""Prompts and answers to calibrate an encoder-decoder on: one to the encoder, the other to the decoder."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kanna.calibration.windows import Windows, check_enough, shuffled
from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.tokens.padded import Wrapped, wrapped
from kanna.tasks.tokens.targets import as_target

Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Pairs(Windows):
    """Windows of an encoder-decoder: `ids` and `mask` are of the prompts.

    Args:
        read: (prompt, what the decoder reads) of each row, as token ids without padding.
    """

    read: tuple[Pair, ...] = field(default=())

    @property
    def digest(self) -> str:
        """sha256 of all tokens."""
        return hashlib.sha256(repr(self.read).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        return sum(len(prompt) + len(decoded) for prompt, decoded in self.read)

    def together(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(prompts, what the decoder reads) of so many rows of equal lengths at a time: nothing is padded."""
        kinds: dict[tuple[int, int], list[Pair]] = {}
        for pair in self.read:
            kinds.setdefault((len(pair[0]), len(pair[1])), []).append(pair)
        for pairs in kinds.values():
            for start in range(0, len(pairs), size):
                prompts, decoded = zip(*pairs[start : start + size], strict=True)
                yield torch.tensor(prompts), torch.tensor(decoded)


def paired(rows: Sequence[Row], tokenizer: Any, start: int, tokens: int, length: int, seed: int) -> Pairs:
    """The rows in a seeded order, until they hold so many tokens.

    Args:
        start: The token that the decoder begins with.
        length: Most tokens of a prompt, which is cut from the left, and of an answer, cut from the right.

    Raises:
        InputError: A row without prompt or answer; fewer tokens than are needed.
    """
    read: list[Pair] = []
    total = 0
    for index in shuffled(len(rows), seed):
        if total >= tokens:
            break
        read.append(_pair(rows[index], index + 1, tokenizer, start, length))
        total += sum(map(len, read[-1]))
    check_enough(total)
    width = max(len(prompt) for prompt, _ in read)
    ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt, _ in read])
    sizes = torch.tensor([len(prompt) for prompt, _ in read])
    return Pairs(ids, torch.arange(width)[None, :] < sizes[:, None], tuple(read))


def _pair(row: Row, number: int, tokenizer: Any, start: int, length: int) -> Pair:
    answer = row.answer or (row.choices[row.label] if row.label is not None else "")
    if not row.prompt or not answer:
        raise InputError(
            f"row {number} of the calibration text has no prompt and answer; an encoder-decoder reads both",
            'give rows such as {"prompt": "...", "answer": "..."}',
        )
    prompt, target = wrapped(tokenizer, row.prompt), as_target(tokenizer, answer)
    over = max(0, len(prompt) - length)
    shortened = Wrapped(prompt.head, prompt.body[over:], prompt.tail).ids
    return shortened, (start, *target.head, *target.body)[:length]
