"""Turn rows of text into the token windows a model is calibrated on."""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.tasks.data.rows import Row

MINIMUM_TOKENS = 256
# Activations of so many tokens are in memory at once; products are no faster with more.
TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class Windows:
    """Token windows of one length.

    Args:
        ids: (windows, length) int64.
        mask: (windows, length) bool, False on padding.
    """

    ids: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.mask.sum())

    @property
    def padded(self) -> bool:
        return not bool(self.mask.all())

    @property
    def digest(self) -> str:
        """sha256 of the tokens and the mask."""
        shape = json.dumps(list(self.ids.shape)).encode()
        content = self.ids.numpy().tobytes() + self.mask.numpy().tobytes()
        return hashlib.sha256(shape + content).hexdigest()

    def at_once(self, most: int) -> int:
        """How many windows are run at once: at most so many, and no more than a fixed number of tokens."""
        return max(1, min(most, TOKENS_AT_ONCE // self.ids.shape[1]))

    def batches(self, size: int) -> list[tuple[Tensor, Tensor | None]]:
        """(ids, mask) of so many windows each; no mask where nothing is padding."""
        masks = self.mask.split(size) if self.padded else itertools.repeat(None)
        return list(zip(self.ids.split(size), masks, strict=False))

    def unpadded(self, size: int, lone: bool = False) -> list[tuple[Tensor, Tensor | None]]:
        """The same without padding: windows of one length together, in the order of their first one.

        Args:
            lone: The first window makes a batch of its own.
        """
        lengths = self.mask.sum(1).tolist()
        groups: dict[object, list[int]] = {}
        for index, length in enumerate(lengths):
            groups.setdefault("first" if lone and index == 0 else length, []).append(index)
        return [
            (batch[:, : lengths[indices[0]]], None)
            for indices in groups.values()
            for batch in self.ids[indices].split(size)
        ]

    def limited(self, tokens: int) -> "Windows":
        """The first windows that together hold at least `tokens` tokens, or all."""
        enough = int((self.mask.sum(1).cumsum(0) < tokens).sum()) + 1
        return self.first(enough)

    def first(self, count: int) -> "Windows":
        return Windows(self.ids[:count], self.mask[:count])

    def after(self, count: int) -> "Windows":
        """Those that `first` leaves."""
        return Windows(self.ids[count:], self.mask[count:])

    @property
    def lone(self) -> "Windows":
        """The first window, without its padding."""
        length = int(self.mask[0].sum())
        return Windows(self.ids[:1, :length], self.mask[:1, :length])


def packed(rows: Sequence[Row], tokenizer: Any, tokens: int, length: int, seed: int) -> Windows:
    """Windows without padding: the rows in a seeded order, joined by the end token, cut at `length`.

    Args:
        tokens: At most so many tokens; rounded down to whole windows.

    Raises:
        InputError: Fewer than `MINIMUM_TOKENS` tokens.
    """
    stream: list[int] = []
    for index in shuffled(len(rows), seed):
        stream += tokenizer(rows[index].text, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            stream.append(tokenizer.eos_token_id)
        if len(stream) >= tokens:
            break
    check_enough(len(stream))
    length = min(length, len(stream), tokens)
    kept = min(len(stream), tokens) // length * length
    ids = torch.tensor(stream[:kept]).view(-1, length)
    return Windows(ids, torch.ones_like(ids, dtype=torch.bool))


def padded(
    rows: Sequence[Row],
    tokenizer: Any,
    tokens: int,
    length: int,
    seed: int,
    ids_of: Callable[[Row], Sequence[int]] | None = None,
) -> Windows:
    """A window for each row, padded on the right: for task rows and for encoders.

    A row longer than `length` becomes several windows.

    Args:
        ids_of: The token ids of a row; None for those of its text.

    Raises:
        InputError: Fewer than `MINIMUM_TOKENS` tokens.
    """
    if ids_of is None:
        ids_of = partial(_ids, tokenizer)
    chosen: list[list[int]] = []
    total = 0
    for index in shuffled(len(rows), seed):
        if total >= tokens:
            break
        row = list(ids_of(rows[index]))
        chosen += [row[start : start + length] for start in range(0, len(row), length)]
        total += len(row)
    check_enough(total)
    width = max(map(len, chosen))
    fill = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
    ids = torch.tensor([row + [fill] * (width - len(row)) for row in chosen])
    sizes = torch.tensor([len(row) for row in chosen])
    return Windows(ids, torch.arange(width)[None, :] < sizes[:, None])


def _ids(tokenizer: Any, row: Row) -> Sequence[int]:
    ids: Sequence[int] = tokenizer(row.text, verbose=False)["input_ids"]
    return ids


def random_windows(vocabulary: int, length: int, seed: int) -> Windows:
    """One window of seeded random tokens, for a probe where no text was given."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (1, length), generator=generator)
    return Windows(ids, torch.ones_like(ids, dtype=torch.bool))


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in a seeded order."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def check_enough(tokens: int) -> None:
    """Raise InputError for fewer tokens than say anything about a model."""
    if tokens < MINIMUM_TOKENS:
        raise InputError(
            f"the calibration text has {tokens} tokens; at least {MINIMUM_TOKENS} are needed",
            "give more text (ten thousand tokens and more), or choose a --method that needs none",
        )
