"""Rows with a right answer: the likeliest of the choices; how likely it is, and what the model does write."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.metrics.text_metrics import legacy_contains, score
from kanna.tasks.records import Record
from kanna.tasks.scorers.likelihood import Likelihood
from kanna.tasks.scorers.scorer import Scorer

GREEDY = "greedy"
TOPS = (1, 5, 10)
_FEWEST, _MOST = 8, 256
_FROM_LIKELIHOOD = (GREEDY, "log_loss", "log_loss_per_token", *(f"top{k}" for k in TOPS))


@dataclass(frozen=True)
class Writing:
    """How answers are generated.

    Args:
        new_tokens: Most tokens of an answer.
        stop: Texts at which an answer ends.
        legacy: `contains` looks into the prompt too, as the code of some papers does.
        own: The metric is one of kanna's, not the user's.
    """

    new_tokens: int
    stop: tuple[str, ...]
    legacy: bool = False
    own: bool = True


def needs_writing(metric: str) -> bool:
    """Whether a metric is of text the model writes; the others need likelihoods only."""
    return metric not in _FROM_LIKELIHOOD


def default_new_tokens(scorer: Scorer, rows: Sequence[Row]) -> int:
    """Twice the longest accepted answer, from 8 to 256 tokens."""
    longest = max(scorer.length(answer) for row in rows for answer in row.accepted)
    return min(_MOST, max(_FEWEST, 2 * longest))


def score_answers(
    scorer: Scorer, rows: Sequence[Row], metric: str, writing: Writing | None, progress: Progress
) -> list[Record]:
    """One record per row.

    `greedy` is 1 where greedy decoding would begin with exactly an answer's tokens: where each is the
    likeliest given those before, which one forward pass shows. `topK` is 1 where each is among the K
    likeliest. With several accepted answers a row takes the best one for each metric.

    Args:
        metric: The headline metric; a name that is not ours is left to the caller, who finds the text in
            `predicted`.
        writing: How to generate; None where `metric` needs no text.
    """
    prompts = [row.asked for row in rows]
    scored = scorer.likelihoods(prompts, [row.accepted for row in rows], True, progress)
    values = [_from_likelihoods(row) for row in scored]
    texts = [""] * len(rows)
    if writing is not None:
        texts = scorer.write(prompts, writing.new_tokens, writing.stop, progress)
    if writing is not None and writing.own:
        scores = [_from_text(row, text, metric, writing) for row, text in zip(rows, texts, strict=True)]
        values = [row | {metric: value} for row, value in zip(values, scores, strict=True)]
    return [
        Record(
            row=number,
            prompt=row.prompt,
            expected=" | ".join(row.accepted),
            predicted=text,
            right=None,
            values=row_values,
            group=row.group,
            cost=row.cost,
        )
        for number, (row, text, row_values) in enumerate(zip(rows, texts, values, strict=True))
    ]


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
    scored = scorer.likelihoods([row.asked for row in rows], [row.choices for row in rows], False, progress)
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


def _from_likelihoods(accepted: Sequence[Likelihood]) -> dict[str, float]:
    best = max(accepted, key=lambda answer: answer.sum)
    rank = min(answer.worst_rank for answer in accepted if answer.worst_rank is not None)
    tops = {f"top{k}": float(rank < k) for k in TOPS}
    per_token = min(-answer.sum / answer.tokens for answer in accepted)
    greedy = float(any(answer.greedy for answer in accepted))
    return {GREEDY: greedy, "log_loss": -best.sum, "log_loss_per_token": per_token, **tops}


def _from_text(row: Row, text: str, metric: str, writing: Writing) -> float:
    if metric == "contains" and writing.legacy:
        return float(any(legacy_contains(row.prompt, text, answer) for answer in row.accepted))
    return score(metric, text, row.accepted)
