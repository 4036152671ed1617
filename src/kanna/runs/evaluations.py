"""Evaluations that are kept: a finished task is not asked again, after a kill or in the next comparison."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanna.checked import check_type
from kanna.checkpoint import lineage
from kanna.checkpoint.whole import write_json_whole
from kanna.configuration import DType
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.progress import Progress
from kanna.result import replace
from kanna.runs.cache_limit import touch
from kanna.runs.in_memory import evaluate_loaded
from kanna.runs.opened import Opened
from kanna.runs.places import cache_directory, warn_of_cache
from kanna.tasks.data.rows import TABLES
from kanna.tasks.data.scripts import goes_on_without_space
from kanna.tasks.data.task import HARNESS, ROWS, Task, task_of
from kanna.tasks.evaluate import Prepared, answers_of, score_text_of, writes
from kanna.tasks.metrics.user_metric import parse_user_metric
from kanna.tasks.options import CONFIDENCE, EvalOptions
from kanna.tasks.records import SCORING, Evaluation, TaskScore
from kanna.tasks.scorers.perplexity import Perplexity
from kanna.tasks.verdict.floor import emptiness

_WRITTEN = "-answers"
# Of a text that stands for itself; the ends are the wide signs of a period, an exclamation and a question.
_FEWEST_WORDS, _ENDS = 2, ("\u3002", "\uff01", "\uff1f")


def evaluate(
    model: str | Path | Opened | nn.Module | tuple[nn.Module, Any],
    tasks: str | Path | Sequence[str | Path | Mapping[str, Any]],
    options: EvalOptions | None = None,
    *,
    tokenizer: Any = None,
    texts: Sequence[str | Path] = (),
    fresh: bool = False,
    cache: Path | None = None,
    progress: Listener = False,
) -> Evaluation:
    """Score a model, compressed or not, on task files and `lm_eval:<name>` tasks.

    The score of a task file is kept in kanna's cache under the content of model, file and options; what is
    found there is not computed again. Tasks of lm_eval, and metrics of the user, whose code may have
    changed, always are, and so is all of a model in memory.

    Args:
        model: A directory, or a hub id in the local cache; or a model in memory, with `tokenizer` or as
            `kanna.load` gives both. That computes where it is and in its own dtype, and is left as it was.
        tasks: A file or an lm_eval task, several of them, the rows of one task as a file of JSON lines has
            them, such as {"prompt": ..., "answer": ...}, or texts: several sentences that name no files.
        options: How it is scored.
        tokenizer: Of a model in memory.
        texts: Files of `tasks` that are to be read as plain text, whatever their rows are.
        fresh: Compute everything again.
        cache: Where scores are kept; kanna's cache directory by default.

    Returns:
        A score for each task, with a record of each row; `result.scores[0].value` is the first headline.

    Raises:
        InputError: Whatever is wrong with the model, a task or the request.
    """
    progress = heard(progress)
    check_type("options", options, EvalOptions, "write kanna.EvalOptions(...)")
    asked = options or EvalOptions()
    names, rows = _files_or_rows(tasks)
    asked.check_metric(has_task=not set(map(str, names)) <= set(map(str, texts)))
    read = None if rows is None else [task_of(rows, asked.limit)]
    loaded, tokens = model if isinstance(model, tuple) and len(model) == 2 else (model, tokenizer)
    if isinstance(loaded, nn.Module):
        return _warned(evaluate_loaded(loaded, tokens, names, asked, texts, read, progress))
    if tokenizer is not None:
        raise InputError("a directory has its tokenizer", "leave tokenizer out, or give a model in memory")
    opened = Opened.open(model)  # type: ignore[arg-type]
    plan = opened.prepared(names, asked, texts, read)
    return _warned(evaluate_opened(opened, plan, fresh=fresh, cache=cache, progress=progress))


def _files_or_rows(
    tasks: str | Path | Sequence[str | Path | Mapping[str, Any]],
) -> tuple[list[str | Path], list[Mapping[str, Any]] | None]:
    """Names of tasks, or the rows of one.

    Raises:
        InputError: Neither.
    """
    given = [tasks] if isinstance(tasks, str | Path) else list(tasks) if isinstance(tasks, Sequence) else None
    if given and all(isinstance(row, Mapping) for row in given):
        return [ROWS], [row for row in given if isinstance(row, Mapping)]
    if given and not isinstance(tasks, str | Path) and all(map(_is_sentence, given)):
        return [ROWS], [{"text": text} for text in given]
    names = [name for name in given or () if isinstance(name, str | Path)]
    if given is None or len(names) < len(given):
        strange = tasks if given is None else next(one for one in given if not isinstance(one, str | Path))
        raise InputError(
            f"a task is a file or rows, found {type(strange).__name__}",
            'give "app.jsonl", several of them, or rows such as {"prompt": ..., "answer": ...}',
        )
    return names, None


def _is_sentence(given: object) -> bool:
    """Whether something is a text, rather than the name of a file or of a task."""
    if not isinstance(given, str) or given.startswith(HARNESS) or not _has_words(given):
        return False
    return Path(given).suffix.lower() not in (*TABLES, ".txt") and not _is_there(Path(given))


def _has_words(text: str) -> bool:
    """Several words, a whole sentence, or words of a script that puts no spaces between them."""
    if len(text.split()) >= _FEWEST_WORDS or text.endswith(_ENDS):
        return True
    return "/" not in text and any(goes_on_without_space(sign, "") for sign in text)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no file has so long a name
        return False


def _warned(evaluation: Evaluation) -> Evaluation:
    """With a note on every score that says nothing about the model."""
    reasons = [emptiness(score, CONFIDENCE) for score in evaluation.scores]
    scores = tuple(
        replace(score, notes=(*score.notes, f"warning: {reason}")) if reason else score
        for score, reason in zip(evaluation.scores, reasons, strict=True)
    )
    return replace(evaluation, scores=scores)


@dataclass(frozen=True)
class TextResult:
    """Perplexity of a model on a file."""

    model: str
    text: str
    result: Perplexity

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": 1, "model": self.model, "text": self.text, **self.result.to_dict()}


def evaluate_text(
    model: str | Path,
    text: str | Path,
    *,
    context: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    batch: int = 8,
    device: str = "cpu",
    dtype: DType = "float32",
    progress: Listener = False,
) -> TextResult:
    """Perplexity of a model directory on a text file, or on the joined texts of a `.jsonl` file.

    Args:
        context: Window length; None takes min(max positions, tokenizer's limit, 2048).
        stride: None takes half the context.
        tokens: Score only the first so many tokens.
        batch: Windows per forward pass, at most.
        dtype: For computing.

    Returns:
        What was read, and its perplexity (`.result.metrics`).

    Raises:
        InputError: No tokenizer, no causal model, a text of fewer than two tokens, NaN logits.
    """
    progress = heard(progress)
    options = EvalOptions(context=context, stride=stride, tokens=tokens, device=device, dtype=dtype)
    opened = Opened.open(model)
    plan = opened.prepared([text], options, [text])
    _, scored = score_text_of(plan, opened.loaded(options), plan.tasks[0], progress, batch)
    return TextResult(opened.name, Path(text).name, scored)


def evaluate_opened(
    opened: Opened,
    plan: Prepared,
    *,
    fresh: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """The same of an open model on tasks that are read; it is loaded if something must be computed."""
    store = _Store((cache or cache_directory()) / "evaluations", opened.identity, plan, fresh)
    known = {task.name: store.find(task) for task in plan.tasks}
    left = tuple(task for task in plan.tasks if known[task.name] is None)
    if not left and not plan.harness:
        kept = tuple(score for score in known.values() if score)
        return Evaluation(model=plan.name, bytes=plan.bytes, scores=kept, run={"cached": True})
    evaluation = replace(plan, tasks=left).evaluate(opened.loaded(plan.options), progress, keep=store.keep)
    computed = {score.task: score for score in evaluation.scores}
    ordered = [known[task.name] or computed[task.name] for task in plan.tasks]
    harness = [score for score in evaluation.scores if score.task not in known]
    return replace(evaluation, scores=(*ordered, *harness))


def answers_opened(
    opened: Opened,
    plan: Prepared,
    task: Task,
    places: Sequence[int],
    *,
    fresh: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> list[str] | None:
    """What an open model writes in answer to the rows at some places; it is loaded if that is not kept.

    Returns:
        None for a model that writes nothing.
    """
    if not writes(plan):
        return None
    store = _Store((cache or cache_directory()) / "evaluations", opened.identity, plan, fresh)
    said = store.written(task)
    if missing := [place for place in places if place not in said]:
        rows = [task.rows[place] for place in missing]
        texts = answers_of(plan, opened.loaded(plan.options), task, rows, progress)
        said |= dict(zip(missing, texts, strict=True))
        store.keep_written(task, said)
    return [said[place] for place in places]


class _Store:
    """Scores on disk, one file per task, and beside it what was written for rows that were looked at."""

    def __init__(self, directory: Path, model: str, plan: Prepared, fresh: bool) -> None:
        self._directory, self._model, self._plan, self._fresh = directory, model, plan, fresh

    def find(self, task: Task) -> TaskScore | None:
        path = self._path(task)
        if self._fresh or not self._keepable():
            return None
        try:
            score = TaskScore.model_validate(json.loads(path.read_text(encoding="utf-8")))
            touch(path)
        except (OSError, ValueError):
            return None  # not there or damaged: it is computed and written again
        return replace(score, task=task.name) if len(score.records) == score.rows else None

    def keep(self, task: Task, score: TaskScore) -> None:
        if not self._keepable():
            return
        try:
            write_json_whole(self._path(task), score.to_dict())
        except OSError as error:
            warn_of_cache(self._directory.parent, error)

    def written(self, task: Task) -> dict[int, str]:
        """Place of a row -> the answer to it, as far as answers are kept."""
        if self._fresh or not self._keepable():
            return {}
        try:
            read = json.loads(self._path(task, _WRITTEN).read_text(encoding="utf-8"))
            return {int(place): str(text) for place, text in read["answers"].items()}
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return {}  # not there or damaged: they are written again

    def keep_written(self, task: Task, said: Mapping[int, str]) -> None:
        if not self._keepable():
            return
        answers = {str(place): text for place, text in sorted(said.items())}
        try:
            write_json_whole(self._path(task, _WRITTEN), {"answers": answers})
        except OSError as error:
            warn_of_cache(self._directory.parent, error)

    def _keepable(self) -> bool:
        metric = self._plan.options.metric
        return metric is None or parse_user_metric(metric) is None

    def _path(self, task: Task, suffix: str = "") -> Path:
        options = dict(self._plan.options)
        costs = self._plan.options.costs
        facts = {
            "format": SCORING,
            "model": self._model,
            "data": task.digest,
            "kind": [task.kind, Path(task.name).suffix],
            "options": {key: str(value) for key, value in options.items()},
            "costs": None if costs is None else lineage.file_digest(costs),
            "versions": lineage.versions(),
            "threads": torch.get_num_threads(),
        }
        return self._directory / f"{lineage.digest_of(facts)}{suffix}.json"
