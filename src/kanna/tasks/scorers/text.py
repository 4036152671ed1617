"""Text rows as a task: perplexity, with one record per window."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kanna.errors import InputError
from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.records import Record
from kanna.tasks.scorers.perplexity import window_scores

BETWEEN = "\n\n"
_SHOWN = 40


def score_text(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    context: int,
    stride: int,
    tokens: int | None,
    progress: Progress,
) -> tuple[list[Record], float]:
    """Records of the windows over the joined rows, and bytes per token.

    Raises:
        InputError: Fewer than two tokens, a stride beyond the context, or logits that are not finite.
    """
    joined = BETWEEN.join(row.text for row in rows)
    ids = torch.tensor(tokenizer(joined, verbose=False)["input_ids"])
    kept = ids if tokens is None else ids[:tokens]
    if len(kept) < 2:
        raise InputError(f"the text has {len(kept)} tokens; at least 2 are needed", "give more text")
    found = window_scores(model, kept, context, stride, progress=progress)
    records = [
        Record(
            row=number,
            prompt=tokenizer.decode(kept[one.first : min(one.end, one.first + _SHOWN)].tolist()),
            expected="",
            predicted="",
            right=None,
            values={"nll": -one.log_likelihood, "tokens": float(one.scored)},
        )
        for number, one in enumerate(found)
    ]
    return records, len(joined.encode()) / len(ids)


def text_metrics(records: Sequence[Record], bytes_per_token: float) -> dict[str, float]:
    """perplexity, nats per token and bits per byte of text records."""
    nll = sum(record.values["nll"] for record in records)
    mean = nll / sum(record.values["tokens"] for record in records)
    return {
        "perplexity": math.exp(mean),
        "log_loss_per_token": mean,
        "bits_per_byte": mean / math.log(2) / bytes_per_token,
    }
