"""Rows with choices: which one the model finds likeliest."""

import math
from collections.abc import Sequence

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
    scored = scorer.likelihoods([row.prompt for row in rows], [row.choices for row in rows], False, progress)
    return [
        _record(number, row, likelihoods, metric, by_length)
        for number, (row, likelihoods) in enumerate(zip(rows, scored, strict=True))
    ]


def _record(number: int, row: Row, choices: Sequence[Likelihood], metric: str, by_length: bool) -> Record:
    assert row.label is not None
    sums = [choice.sum for choice in choices]
    lengths = [len(choice.strip()) for choice in row.choices]
    best = _argmax(sums)
    best_norm = _argmax([total / n for total, n in zip(sums, lengths, strict=True)])
    chosen = best_norm if metric == "acc_norm" else best
    gold = choices[row.label]
    weights = [math.exp(total - max(sums)) for total in sums]
    first, second = sorted(sums, reverse=True)[:2]
    values = {"acc": float(best == row.label), "log_loss": -gold.sum, "margin": first - second}
    if by_length:
        values["acc_norm"] = float(best_norm == row.label)
        values["log_loss_per_token"] = -gold.sum / gold.tokens
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
        confidence=weights[chosen] / sum(weights),
    )


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: values[i])
