"""Rows of like length together; and what encoders read: texts with special tokens, padded on the right."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Wrapped:
    """A text as token ids.

    Args:
        head: Special tokens before it.
        body: The text.
        tail: Special tokens behind it.
    """

    head: tuple[int, ...]
    body: tuple[int, ...]
    tail: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.head + self.body + self.tail

    def __len__(self) -> int:
        return len(self.head) + len(self.body) + len(self.tail)


def wrapped(tokenizer: Any, text: str) -> Wrapped:
    """A text, and the special tokens that the tokenizer puts around it."""
    whole = tuple(tokenizer(text, verbose=False)["input_ids"])
    body = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    for start in range(len(whole) - len(body) + 1):
        end = start + len(body)
        if whole[start:end] == body:
            return Wrapped(whole[:start], body, whole[end:])
    return Wrapped((), whole, ())


def batches(
    sizes: Sequence[int], wanted: Sequence[int], batch_tokens: int, most_wanted: int, equal: bool
) -> Iterator[list[int]]:
    """Numbers of the rows of each forward pass, short rows first.

    Args:
        sizes: Tokens of each row.
        wanted: Places of each row that need logits.
        batch_tokens: Tokens per pass, padding included; a longer row goes alone.
        most_wanted: Places per pass.
        equal: Only rows of one length go together.
    """
    batch: list[int] = []
    places = 0
    for row in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        full = (len(batch) + 1) * sizes[row] > batch_tokens or places + wanted[row] > most_wanted
        if batch and (full or (equal and sizes[row] != sizes[batch[0]])):
            yield batch
            batch, places = [], 0
        batch.append(row)
        places += wanted[row]
    if batch:
        yield batch


def fit(
    rows: Sequence[int], sizes: Sequence[int], wanted: Sequence[int], batch_tokens: int, most_wanted: int
) -> bool:
    """Whether `batches` would put these rows into one forward pass, were there no others."""
    tokens = len(rows) * max(sizes[row] for row in rows)
    return tokens <= batch_tokens and sum(wanted[row] for row in rows) <= most_wanted


def takes_mask(model: nn.Module) -> bool:
    """Whether the model can be told what is padding; FNet cannot."""
    forward: Any = model.forward
    return "attention_mask" in inspect.signature(forward).parameters


def inputs(model: nn.Module, rows: Sequence[Sequence[int]], width: int = 0) -> dict[str, Tensor]:
    """Keyword arguments of the forward pass over rows of token ids.

    What padding is filled with only matters to models that look for their own padding token.

    Args:
        width: Tokens of a row with its padding; at least those of the longest.
    """
    device = next(model.parameters()).device
    width = max(width, *map(len, rows))
    fill = pad_token(model) or 0
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)
    if not takes_mask(model):
        return {"input_ids": ids}
    sizes = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device)[None] < sizes[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def vocabulary_of(model: nn.Module) -> int | None:
    """How many tokens a model has embeddings of; None where that is not known or it reads letters."""
    try:
        size = getattr(model.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        size = None
    return size if isinstance(size, int) else _said(getattr(model, "config", None))


def _said(config: Any) -> int | None:
    """The vocabulary of a configuration, or of its part about text where it has several."""
    if config is None or getattr(config, "vocab_size", None) is not None:
        return getattr(config, "vocab_size", None)
    return (
        getattr(config.get_text_config(), "vocab_size", None) if hasattr(config, "get_text_config") else None
    )


def pad_token(model: nn.Module) -> int | None:
    """The model's own padding token, not the tokenizer's, which may lie outside the vocabulary."""
    config: Any = getattr(model, "config", None)
    token = getattr(config, "pad_token_id", None)
    size = vocabulary_of(model)
    return None if token is None or token < 0 or (size and token >= size) else int(token)
