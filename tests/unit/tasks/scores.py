"""Scores of made-up records."""

from functools import cache

import numpy as np

from kanna.tasks.records import Record, TaskScore


@cache
def record(row: int, value: float, metric: str, group: str) -> Record:
    return Record(row, "", "", "", value == 1.0, {metric: value}, group=group)


def score_of(
    values: np.ndarray,
    metric: str = "acc",
    groups: np.ndarray | None = None,
    higher: bool = True,
    value: float | None = None,
) -> TaskScore:
    """A task whose records have these values of a metric."""
    names = [""] * len(values) if groups is None else [f"g{one}" for one in groups]
    binary = set(np.unique(values)) <= {0.0, 1.0}
    make = record if binary else record.__wrapped__
    records = tuple(make(i, float(v), metric, names[i]) for i, v in enumerate(values))
    mean = float(np.mean(values)) if value is None else value
    return TaskScore.of("task.jsonl", "choice", metric, higher, {metric: mean}, {}, records)


def text_of(nll: np.ndarray, tokens: np.ndarray, metric: str = "perplexity", unit: float = 1.0) -> TaskScore:
    """Windows of text with their nats and tokens; `unit` is what a nat per token is in the metric's."""
    mean = float(nll.sum() / tokens.sum()) * unit
    value = float(np.exp(mean)) if metric.endswith("perplexity") else mean
    pairs = enumerate(zip(nll, tokens, strict=True))
    records = tuple(Record(i, "", "", "", None, {"nll": float(n), "tokens": float(t)}) for i, (n, t) in pairs)
    return TaskScore.of("text.txt", "text", metric, False, {metric: value}, {}, records)


def binary_of(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) rights and wrongs of two models with these counts."""
    cells = np.repeat(np.arange(4), (both, lost, gained, neither))
    return np.isin(cells, (0, 1)).astype(float), np.isin(cells, (0, 2)).astype(float)
