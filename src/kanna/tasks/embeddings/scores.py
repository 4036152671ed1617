"""Rows about embeddings: is what is alike near, and is what is looked for nearest."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kanna.errors import InputError
from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.data.task import Task
from kanna.tasks.embeddings.embedder import Embedder
from kanna.tasks.embeddings.modules import Sentences
from kanna.tasks.metrics.rank_correlation import jackknifed, pearson, spearman
from kanna.tasks.metrics.summaries import summarise
from kanna.tasks.metrics.user_metric import metric_info
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import SIMILARITY, Record, TaskScore

SPEARMAN, RECALL = "spearman", "recall@1"


def check_rows(task: Task, metric: str, options: EvalOptions) -> None:
    """Raise InputError where rows cannot be scored, or not as asked, before any long work."""
    metric_info(metric, task.kind)
    if options.chat or options.costs is not None:
        what = "--chat" if options.chat else "--costs"
        raise InputError(f"{task.name} is about embeddings, and {what} about answers", f"leave out {what}")
    if task.kind == SIMILARITY and len({row.score for row in task.rows}) < 2:
        raise InputError(
            f"{task.name}: all {len(task.rows)} rows have the score {task.rows[0].score:g}, so nothing can "
            "be ordered by it",
            "give rows of different scores",
        )


def score_task(
    sentences: Sentences,
    model: nn.Module,
    tokenizer: Any,
    task: Task,
    context: int,
    options: EvalOptions,
    progress: Progress,
) -> TaskScore:
    """Score rows of pairs or of searches.

    Args:
        context: Most tokens of a text, if the directory does not say fewer.
    """
    limit = min(context, sentences.longest or context)
    embedder = Embedder(model, tokenizer, sentences, limit, options.refuse_long, options.batch_tokens)
    if task.kind == SIMILARITY:
        records, figures = score_pairs(embedder, task.rows, progress)
    else:
        records = score_searches(embedder, task.rows, progress)
        figures = summarise(records, task.rows, RECALL)
    return TaskScore.of(
        task=task.name,
        kind=task.kind,
        metric=SPEARMAN if task.kind == SIMILARITY else RECALL,
        higher_is_better=True,
        metrics=figures,
        floors={},
        records=records,
        notes=_notes(embedder),
        settings={
            "data_sha256": task.digest,
            "context": limit,
            "dtype": options.dtype,
            "pooling": list(sentences.poolings),
            "prompts": {"query": sentences.query, "document": sentences.document, "text": sentences.usual},
        },
    )


def _notes(embedder: Embedder) -> tuple[str, ...]:
    if not embedder.cut:
        return embedder.sentences.notes
    texts = "1 text was" if embedder.cut == 1 else f"{embedder.cut:,} texts were"
    return (*embedder.sentences.notes, f"{texts} longer than {embedder.limit:,} tokens and cut on the right")


def score_pairs(
    embedder: Embedder, rows: Sequence[Row], progress: Progress
) -> tuple[list[Record], dict[str, float]]:
    """Cosines of pairs against what people gave them: a record a row, and the correlations of all.

    `spearman` of a record is what its row adds to the correlation; see `rank_correlation`.
    """
    usual = embedder.sentences.usual
    pairs = [row.pair for row in rows]
    found = embedder.embed([(usual, text) for pair in pairs for text in pair], progress)
    cosines = np.array(cosine(found[0::2], found[1::2]).tolist())
    given = np.array([row.score for row in rows], dtype=np.float64)
    added = jackknifed(cosines, given)
    records = [
        Record(
            row=number,
            prompt=row.pair[0],
            expected=row.pair[1],
            predicted=f"cosine {near:.4f}",
            right=None,
            values={SPEARMAN: float(value), "cosine": float(near), "score": float(wanted)},
            group=row.group,
            cost=row.cost,
        )
        for number, (row, value, near, wanted) in enumerate(zip(rows, added, cosines, given, strict=True))
    ]
    return records, {SPEARMAN: spearman(cosines, given), "pearson": pearson(cosines, given)}


def score_searches(embedder: Embedder, rows: Sequence[Row], progress: Progress) -> list[Record]:
    """Whether the positive is nearer to the query than every negative of its row."""
    sentences = embedder.sentences
    asked = embedder.embed([(sentences.query, row.prompt) for row in rows], progress)
    texts = [(row.answer, *row.negatives) for row in rows]
    found = embedder.embed([(sentences.document, text) for some in texts for text in some], progress)
    parts = found.split([len(some) for some in texts])
    return [
        _searched(number, row, some, cosine(query[None], part).tolist())
        for number, (row, some, query, part) in enumerate(zip(rows, texts, asked, parts, strict=True))
    ]


def _searched(number: int, row: Row, texts: Sequence[str], near: Sequence[float]) -> Record:
    """A negative that is as near as the positive was not told apart from it."""
    margin = near[0] - max(near[1:])
    best = max(range(len(texts)), key=lambda i: (near[i], i))
    return Record(
        row=number,
        prompt=row.prompt,
        expected=row.answer,
        predicted=texts[best],
        right=margin > 0,
        values={RECALL: float(margin > 0), "margin": margin},
        group=row.group,
        cost=row.cost,
    )


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """(rows,) of each row with its other, or of one row with all."""
    return torch.nn.functional.cosine_similarity(first, second, dim=-1)
