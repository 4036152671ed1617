"""Rows with choices: which one the model finds likeliest."""

import math
from collections.abc import Sequence
from dataclasses import replace

from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.records import Record
from kanna.tasks.scorers.likelihood import Likelihood
from kanna.tasks.scorers.scorer import Scorer


def score_choices(
    scorer: Scorer, rows: Sequence[Row], metric: str, progress: Progress, by_length: bool = True
) -> list[Record]:
    """One record per row.

    `acc` takes the choice of the highest log-likelihood, `acc_norm` that of the highest log-likelihood per
    character of the choice, as lm-evaluation-harness does; the first wins where two are equal. Spaces
    around a choice do not count: with or without them, the model reads the same.

    Args:
        metric: acc_norm makes that choice the `chosen` one; anything else the choice of `acc`.
        by_length: Choices are text that was scored token by token; without it there is neither `acc_norm` nor
            `log_loss_per_token`.
    """
    found = scorer.likelihoods([row.prompt for row in rows], [row.choices for row in rows], False, progress)
    records = [_record(i, row, one, metric) for i, (row, one) in enumerate(zip(rows, found, strict=True))]
    return records if by_length else [_without_lengths(record) for record in records]


def _without_lengths(record: Record) -> Record:
    kept = {
        name: one for name, one in record.values.items() if name not in ("acc_norm", "log_loss_per_token")
    }
    return replace(record, values=kept)


def _record(number: int, row: Row, found: Sequence[Likelihood], metric: str) -> Record:
    assert row.label is not None
    sums = [one.sum for one in found]
    lengths = [len(choice.strip()) for choice in row.choices]
    best = _argmax(sums)
    best_norm = _argmax([total / n for total, n in zip(sums, lengths, strict=True)])
    chosen = best_norm if metric == "acc_norm" else best
    gold = found[row.label]
    shares = _softmax(sums)
    values = {
        "acc": float(best == row.label),
        "acc_norm": float(best_norm == row.label),
        "log_loss": -gold.sum,
        "log_loss_per_token": -gold.sum / gold.tokens,
        "margin": _margin(sums),
    }
    return Record(
        row=number,
        prompt=row.prompt,
        expected=row.choices[row.label],
        predicted=row.choices[chosen],
        right=chosen == row.label,
        values=values,
        group=row.group,
        cost=row.cost,
        label=row.label,
        chosen=chosen,
        confidence=shares[chosen],
    )


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: values[i])


def _softmax(logs: Sequence[float]) -> list[float]:
    top = max(logs)
    weights = [math.exp(one - top) for one in logs]
    return [one / sum(weights) for one in weights]


def _margin(logs: Sequence[float]) -> float:
    """By how much the likeliest choice leads, nats."""
    first, second = sorted(logs, reverse=True)[:2]
    return first - second
