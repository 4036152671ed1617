"""Rows with an answer: how likely it is, whether it is what the model would write, and what it does write."""

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
    prompts = [row.prompt for row in rows]
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
