"""What lm_eval keeps of each row, on the scale of the score it makes of all of them.

A score need not be the mean of what is kept: perplexity is of log-likelihoods, of which more is better though
less perplexity is. What was done is not asked of names, which tasks may give as they like, but found by doing
it again. Where it is not found, rows say nothing about the score, and no verdict is made of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kanna.errors import InputError

Values = list[dict[str, float]]
# Of a score and the same computed again in another order of sums.
_ROUNDING = 1e-6
# Aggregations of lm_eval by the names of their functions.
_OF_LIKELIHOODS = ("perplexity", "weighted_perplexity", "bits_per_byte")
_OF_ALL_ROWS = ("f1_score", "matthews_corrcoef", "bleu", "chrf", "chrfpp", "ter", "median", "bypass_agg")


@dataclass(frozen=True)
class Scale:
    """Values of each row under the name that verdicts look for.

    Args:
        values: Those of the metric, or "nll" and "tokens" (what it is per) where it is of likelihoods; empty
            where the score is made of rows in another way.
        higher_is_better: Of the score; None where nobody says.
        likelihood: Whether the score is of the likelihood of the rows.
    """

    values: Values
    higher_is_better: bool | None
    likelihood: bool = False

    @property
    def judged(self) -> bool:
        return bool(self.values) and self.higher_is_better is not None


def scale_of(metric: str, score: float, kept: Sequence[Any], higher_is_better: bool | None) -> Scale:
    """How `score` comes from what was kept of each row.

    Args:
        higher_is_better: As the task says; not asked where the score is of likelihoods.
    """
    for likelihood, values_of, made_of in _WAYS:
        values = values_of(metric, kept)
        if values is not None and any(
            math.isclose(made, score, rel_tol=_ROUNDING) for made in made_of(values)
        ):
            return Scale(values, False if likelihood else higher_is_better, likelihood)
    return Scale([], higher_is_better)


def note_on(metric: str, scale: Scale) -> str | None:
    """Why verdicts cannot be made of a metric; None where they can."""
    if not scale.values:
        return f"lm_eval's {metric} is no mean of its rows"
    if scale.higher_is_better is None:
        return f"the task does not say whether more of {metric} is better (higher_is_better)"
    return None


def refuse_unjudged(
    task: str,
    metric: str,
    aggregations: Mapping[str, Callable[..., Any]],
    higher_is_better: Mapping[str, bool | None],
) -> None:
    """Raise InputError for a headline metric of whose score `scale_of` will find no values, as far as known.

    Args:
        aggregations: Metric -> what makes the score of all rows; a function of the user's may be anything.
        higher_is_better: Metric -> whether more is better, None where nobody says.
    """
    made_by = getattr(aggregations[metric], "__name__", "")
    if made_by in _OF_ALL_ROWS:
        why = f"lm_eval's {metric} is no mean of its rows ({made_by})"
    elif made_by not in _OF_LIKELIHOODS and higher_is_better.get(metric) is None:
        why = f"the task does not say whether more of {metric} is better (higher_is_better)"
    else:
        return
    raise InputError(
        f"lm_eval:{task}: {why}, so nothing can be said of chance",
        "choose another metric, or give no tolerance",
    )


def _plain(metric: str, kept: Sequence[Any]) -> Values | None:
    """A number of each row."""
    return [{metric: float(one)} for one in kept] if all(map(_number, kept)) else None


def _brier(metric: str, kept: Sequence[Any]) -> Values | None:
    """The right choice and the probabilities of all choices: squares of what is missing and too much."""
    if not all(_pair(one) and not _number(one[1]) and len(one[1]) > one[0] >= 0 for one in kept):
        return None
    return [
        {metric: sum((p - (choice == right)) ** 2 for choice, p in enumerate(map(float, probabilities)))}
        for right, probabilities in kept
    ]


def _likelihood(_: str, kept: Sequence[Any]) -> Values | None:
    """A log-likelihood of each row."""
    return [{"nll": -float(one), "tokens": 1.0} for one in kept] if all(map(_number, kept)) else None


def _weighted(_: str, kept: Sequence[Any]) -> Values | None:
    """A log-likelihood of each row, and the words or bytes that it is of."""
    if not all(_pair(one) and _number(one[1]) and one[1] > 0 for one in kept):
        return None
    return [{"nll": -float(total), "tokens": float(count)} for total, count in kept]


def _mean(values: Values) -> tuple[float, ...]:
    return (sum(next(iter(row.values())) for row in values) / len(values),)


def _of_likelihoods(values: Values) -> tuple[float, ...]:
    """Perplexity, and bits."""
    nats = sum(row["nll"] for row in values) / sum(row["tokens"] for row in values)
    return (*((math.exp(nats),) if nats < 700 else ()), nats / math.log(2))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0)


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and _number(value[0])


_WAYS: tuple[
    tuple[bool, Callable[[str, Sequence[Any]], Values | None], Callable[[Values], tuple[float, ...]]], ...
] = (
    (False, _plain, _mean),
    (False, _brier, _mean),
    (True, _likelihood, _of_likelihoods),
    (True, _weighted, _of_likelihoods),
)
