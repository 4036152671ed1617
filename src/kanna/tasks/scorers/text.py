"""Text rows as a task: perplexity, with one record per window."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.records import Record
from kanna.tasks.scorers.perplexity import Perplexity, perplexity

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
    whole = torch.tensor(tokenizer(joined, verbose=False)["input_ids"])
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
    return records, scored
