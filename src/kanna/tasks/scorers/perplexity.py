"""Perplexity of a causal model on text, by a sliding window; of text rows, with one record per window."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kanna.errors import InputError
from kanna.progress import Progress, told
from kanna.tasks.data.rows import Row
from kanna.tasks.records import Record
from kanna.tasks.scorers.layout import Seen, alike
from kanna.tasks.scorers.likelihood import logits_at, most_logits
from kanna.tasks.scorers.scorer import by_row
from kanna.tasks.tokens.padded import batches, vocabulary_of
from kanna.tasks.tokens.special import check_known, end_note, end_of, without


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
        windows: What the sum is of, in the order of the text.
        notes: What the reader of the numbers must know.
    """

    perplexity: float
    log_likelihood: float
    scored: int
    tokens: int
    bytes_per_token: float
    bits_per_byte: float
    context: int
    stride: int
    windows: tuple[Window, ...]
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """perplexity, nats per token and bits per byte."""
        return {
            "perplexity": self.perplexity,
            "log_loss_per_token": -self.log_likelihood / self.scored,
            "bits_per_byte": self.bits_per_byte,
        }

    def to_dict(self) -> dict[str, Any]:
        """All but the windows, and notes where there are any."""
        left_out = ("windows",) if self.notes else ("windows", "notes")
        return {name: value for name, value in asdict(self).items() if name not in left_out}


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
    scored, notes = _scored(model, ids, context, stride, batch, progress)
    total, count = sum(window.log_likelihood for window in scored), sum(window.scored for window in scored)
    mean = -total / count
    bits = mean / math.log(2) / bytes_per_token
    return Perplexity(
        math.exp(mean), total, count, len(ids), bytes_per_token, bits, context, stride, scored, notes
    )


_APART = "every window was computed by itself, since others beside it change what this model computes"
BETWEEN = "\n\n"
_SHOWN = 40


def score_text(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    context: int,
    stride: int | None,
    tokens: int | None,
    progress: Progress,
    batch: int = 8,
) -> tuple[list[Record], Perplexity]:
    """Records of the windows over the joined rows, and what they are together.

    Args:
        stride: None is half the context.
        tokens: Only the first so many.
        batch: Windows per forward pass, at most.

    Raises:
        InputError: Fewer than two tokens, a stride beyond the context, or logits that are not finite.
    """
    joined = BETWEEN.join(row.text for row in rows)
    end = end_of(tokenizer)
    whole = torch.tensor(without(tokenizer(joined, verbose=False)["input_ids"], end))
    _check_known(model, tokenizer, rows, whole)
    ids = whole if tokens is None else whole[:tokens]
    size = len(joined.encode()) / max(1, len(whole))
    scored = perplexity(model, ids, context, stride or max(1, context // 2), batch, size, progress)
    records = [
        Record(
            row=number,
            prompt=tokenizer.decode(ids[window.first : min(window.end, window.first + _SHOWN)].tolist()),
            expected="",
            predicted="",
            right=None,
            values={"nll": -window.log_likelihood, "tokens": float(window.scored)},
        )
        for number, window in enumerate(scored.windows)
    ]
    return records, replace(scored, notes=(*scored.notes, *([end_note(tokenizer, end)] if end else [])))


def _check_known(model: nn.Module, tokenizer: Any, rows: Sequence[Row], ids: Tensor) -> None:
    """Raise for the first row with a token that the model does not have."""
    known = vocabulary_of(model)
    if known is None or not len(ids) or int(ids.max()) < known:
        return
    if len(rows) > 1:
        own = [tokenizer(row.text, verbose=False)["input_ids"] for row in rows]
        by_row(lambda _, some: check_known(some, known, tokenizer), [row.text for row in rows], own)
    check_known(ids.tolist(), known, tokenizer)


def _scored(
    model: nn.Module, ids: Tensor, context: int, stride: int, batch: int, progress: Progress
) -> tuple[tuple[Window, ...], tuple[str, ...]]:
    """The windows of `ids` (tokens,), those of equal length at most `batch` at a time; and notes."""
    if not 1 <= stride <= context:
        raise InputError(f"stride {stride} must be from 1 to the context of {context}", "lower --stride")
    spans = list(windows(len(ids), context, stride))
    few = max(1, min(batch, most_logits(model) // stride))
    lengths = [end - start for start, end, _ in spans]
    groups = list(batches(lengths, [1] * len(spans), few * context, few, equal=True))
    hold, known = _tried(model, ids, spans, groups)
    if not hold:
        groups = [[place] for group in groups for place in group]
    sums = [0.0] * len(spans)
    for group in told(progress, "perplexity", groups):
        missing = not known.keys() >= set(group)
        found = _losses(model, ids, [spans[i] for i in group]) if missing else [known[i] for i in group]
        for place, losses in zip(group, found, strict=True):
            sums[place] = -float(losses.double().sum())
    if not math.isfinite(sum(sums)):
        raise InputError("the model's logits are not finite", "check the checkpoint, or compute in float32")
    made = (Window(start, first, end, total) for (start, end, first), total in zip(spans, sums, strict=True))
    return tuple(made), () if hold else (_APART,)


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


def _tried(
    model: nn.Module, ids: Tensor, spans: Sequence[tuple[int, int, int]], groups: Sequence[Sequence[int]]
) -> tuple[bool, dict[int, Tensor]]:
    """Whether windows in one forward pass are scored as each is alone, seen on the last of the first such.

    And the losses of windows that were computed for that in the way that all will be.
    """
    group = next((group for group in groups if len(group) > 1), None)
    if group is None:
        return True, {}
    together = _losses(model, ids, [spans[i] for i in group])
    (alone,) = _losses(model, ids, [spans[group[-1]]])
    if alike(Seen(alone, float(alone.max())), Seen(together[-1], float(alone.max())), model):
        return True, dict(zip(group, together, strict=True))
    return False, {group[-1]: alone}


def _losses(model: nn.Module, ids: Tensor, group: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Of each window of a group, the negative log-likelihoods that it scores."""
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
    return list(losses.split([end - begin for begin, end in spans]))
