"""Perplexity of a causal model on text, by a sliding window."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kanna.checkpoint.loader import load
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.models.device import device_of, dtype_of
from kanna.progress import Progress
from kanna.tasks.data.rows import read_rows
from kanna.tasks.scorers.likelihood import logits_at, most_logits
from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer, predicts_next_token


@dataclass(frozen=True)
class Perplexity:
    """Result of scoring one text.

    Args:
        perplexity: exp of the mean negative log-likelihood in nats.
        log_likelihood: Their sum, negative.
        scored: Tokens with a prediction: all but the first.
        tokens: Of the text, after any limit.
        bytes_per_token: Length of the text over its tokens; models with other tokenizers compare by
            `bits_per_byte` only.
        bits_per_byte: Of the scored text.
        context: Longest window.
        stride: Tokens by which windows advance.
    """

    perplexity: float
    log_likelihood: float
    scored: int
    tokens: int
    bytes_per_token: float
    bits_per_byte: float
    context: int
    stride: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TextResult:
    """Perplexity of a model on a file."""

    model: str
    text: str
    result: Perplexity

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": 1, "model": self.model, "text": self.text, **self.result.to_dict()}


def evaluate_text(
    model: str | Path,
    text: str | Path,
    *,
    context: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    batch: int = 8,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress = lambda *_: None,
) -> TextResult:
    """Perplexity of a model directory on a text file, or on the joined texts of a `.jsonl` file.

    Args:
        context: Window length; None takes min(max positions, tokenizer's limit, 2048).
        stride: None takes half the context.
        tokens: Score only the first so many tokens.
        dtype: For computing.

    Raises:
        InputError: No tokenizer, no causal model, a text of fewer than two tokens, NaN logits.
    """
    checkpoint = Checkpoint.open(model)
    if not predicts_next_token(checkpoint.config):
        found = checkpoint.config.get("architectures")
        raise InputError(f"{checkpoint.name} is no causal language model: {found}", "perplexity needs one")
    rows = read_rows(text)
    tokenizer = load_tokenizer(checkpoint.directory)
    joined = "\n\n".join(row.text for row in rows)
    ids = tokenizer(joined, return_tensors="pt", verbose=False)["input_ids"][0]
    kept = ids if tokens is None else ids[:tokens]
    length = context_length(checkpoint.config, tokenizer, context)
    loaded, _ = load(
        model, dtype=dtype_of(dtype), device_map=None if device_of(device).type == "cpu" else device
    )
    size = len(joined.encode()) / len(ids)
    result = perplexity(loaded, kept, length, stride or max(1, length // 2), batch, size, progress)
    return TextResult(checkpoint.name, Path(text).name, result)


def perplexity(
    model: nn.Module,
    ids: Tensor,
    context: int,
    stride: int,
    batch: int = 8,
    bytes_per_token: float = 1.0,
    progress: Progress = lambda *_: None,
) -> Perplexity:
    """Score `ids` (tokens,) once each, with at least context - stride tokens before them where there are any.

    Raises:
        InputError: Fewer than two tokens, a stride beyond the context, or logits that are not finite.
    """
    if len(ids) < 2:
        raise InputError(f"the text has {len(ids)} tokens; at least 2 are needed", "give more text")
    found = window_scores(model, ids, context, stride, batch, progress)
    total, scored = sum(one.log_likelihood for one in found), sum(one.scored for one in found)
    mean = -total / scored
    bits = mean / math.log(2) / bytes_per_token
    return Perplexity(math.exp(mean), total, scored, len(ids), bytes_per_token, bits, context, stride)


@dataclass(frozen=True)
class Window:
    """What one window contributed.

    Args:
        start: Its first token.
        first: The first token it scored.
        end: Behind its last.
        log_likelihood: Sum over the scored tokens, nats.
    """

    start: int
    first: int
    end: int
    log_likelihood: float

    @property
    def scored(self) -> int:
        return self.end - self.first


def window_scores(
    model: nn.Module,
    ids: Tensor,
    context: int,
    stride: int,
    batch: int = 8,
    progress: Progress = lambda *_: None,
) -> list[Window]:
    """The log-likelihood of each window of `ids` (tokens,).

    Raises:
        InputError: A stride beyond the context, or logits that are not finite.
    """
    if not 1 <= stride <= context:
        raise InputError(f"stride {stride} must be from 1 to the context of {context}", "lower --stride")
    spans = list(windows(len(ids), context, stride))
    found: list[Window] = []
    groups = list(_groups(spans, max(1, min(batch, most_logits(model) // stride))))
    for done, group in enumerate(groups):
        progress("perplexity", done, len(groups))
        sums = _score(model, ids, group)
        found += [Window(s, first, e, value) for (s, e, first), value in zip(group, sums, strict=True)]
    progress("perplexity", len(groups), len(groups))
    if not math.isfinite(sum(one.log_likelihood for one in found)):
        raise InputError("the model's logits are not finite", "check the checkpoint, or compute in float32")
    return found


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first scored) of each window; every token but the first is scored exactly once.

    With stride equal to the context, windows do not overlap and each scores all but its first token.
    """
    if stride == context:
        for start in range(0, tokens - 1, context):
            yield start, min(start + context, tokens), start + 1
        return
    scored = 1
    for start in range(0, tokens, stride):
        end = min(start + context, tokens)
        yield start, end, max(scored, start + 1)
        scored = end
        if end == tokens:
            return


def _groups(spans: Sequence[tuple[int, int, int]], batch: int) -> Iterator[Sequence[tuple[int, int, int]]]:
    """Windows of equal length, at most `batch` at a time, in order."""
    group: list[tuple[int, int, int]] = []
    for span in spans:
        if group and (len(group) == batch or span[1] - span[0] != group[0][1] - group[0][0]):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def _score(model: nn.Module, ids: Tensor, group: Sequence[tuple[int, int, int]]) -> list[float]:
    """Of each window of a group, the sum of the log-likelihoods it scores."""
    device = next(model.parameters()).device
    inputs = torch.stack([ids[start:end] for start, end, _ in group]).to(device)
    width = inputs.shape[1]
    spans = [
        (row * width + first - start - 1, (row + 1) * width - 1)
        for row, (start, _, first) in enumerate(group)
    ]
    places = torch.cat([torch.arange(begin, end, device=device) for begin, end in spans])
    logits = logits_at(model, {"input_ids": inputs}, places)
    losses = functional.cross_entropy(logits, inputs.flatten()[places + 1], reduction="none")
    return [-float(part.double().sum()) for part in losses.split([end - begin for begin, end in spans])]
