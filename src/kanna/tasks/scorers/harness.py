"""Tasks of lm-evaluation-harness, with its prompts and metrics and kanna's way of computing."""

import contextlib
import difflib
import functools
import io
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kanna.errors import InputError
from kanna.progress import Progress
from kanna.tasks.records import ANSWER, CHOICE, TEXT, Record, TaskScore
from kanna.tasks.scorers.harness_files import is_file, name_in
from kanna.tasks.scorers.harness_model import asked_by_lm_eval
from kanna.tasks.scorers.harness_values import Scale, note_on, refuse_unjudged, scale_of

_INSTALL = "pip install 'kanna[eval]'"
_HEADLINES = ("acc", "exact_match", "em", "f1", "perplexity", "word_perplexity", "byte_perplexity")
_MUTUAL = "acc_mutual_info"
_OFFLINE = "HF_HUB_OFFLINE"


def run_harness(
    model: nn.Module,
    tokenizer: Any,
    names: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    context: int = 2048,
    batch_tokens: int = 2048,
    shots: int | None = None,
    share: bool = True,
    progress: Progress = lambda *_: None,
) -> list[TaskScore]:
    """Scores of tasks by name, groups as their members, in lm_eval's order.

    Args:
        names: Of lm_eval tasks, or paths of task files in YAML.
        include: Folder of the user's own tasks.
        limit: Rows of each task, at most.
        context: Most tokens read at once.
        shots: Examples before each question; None as the task says.
        share: Compute what prompts share once, where that is right.

    Raises:
        InputError: lm_eval is not installed, a task is unknown, or its data are not on this machine.
    """
    library = _library()
    wanted = _wanted_names(names)
    with _quiet(), _offline(), _seeds_kept():
        manager = _manager(library, names, include)
        _check_names(wanted, manager)
        asked = asked_by_lm_eval(
            model, tokenizer, context=context, batch_tokens=batch_tokens, share=share, progress=progress
        )
        results = _evaluated(library, asked, wanted, manager, limit, shots)
    settings = {"context": context, "limit": limit, "shots": shots, "lm_eval": version("lm_eval")}
    notes = tuple(dict.fromkeys(asked.notes))
    return [_score(name, results, settings, notes) for name in results["samples"]]


def check_names(names: Sequence[str], include: Path | None = None) -> None:
    """Raise InputError where `run_harness` would not know a task."""
    library = _library()
    wanted = _wanted_names(names)
    with _quiet(), _offline():
        _check_names(wanted, _manager(library, names, include))


def check_judged(names: Sequence[str], include: Path | None = None) -> None:
    """Raise InputError for a task of whose score no verdict can be made, before anything is computed."""
    library = _library()
    with _quiet(), _offline(), _seeds_kept():
        wanted = _wanted_names(names)
        manager = _manager(library, names, include)
        try:
            tasks = manager.load(wanted)["tasks"]
        except Exception as error:
            raise _not_run(names, error) from error
        for name, task in tasks.items():
            refuse_unjudged(
                name, headline_of(task.aggregation()), task.aggregation(), task.higher_is_better()
            )


def _wanted_names(names: Sequence[str]) -> list[str]:
    return [name_in(Path(name)) if is_file(name) else name for name in names]


def _manager(library: Any, names: Sequence[str], include: Path | None) -> Any:
    """lm_eval's index of tasks; of the user's folders alone where they have all, since its own takes seconds.

    A group may name tasks that lie elsewhere.
    """
    folders = [
        str(folder) for folder in (include, *(Path(name).parent for name in names if is_file(name))) if folder
    ]
    if folders:
        own = library.tasks.TaskManager(include_path=folders, include_defaults=False)
        if set(_wanted_names(names)) <= set(own.all_subtasks):
            return own
        return library.tasks.TaskManager(include_path=folders)
    return _index()


@functools.cache
def _index() -> Any:
    """lm_eval's own tasks, which do not change: read once, though they are looked up twice."""
    return _library().tasks.TaskManager()


def _evaluated(
    library: Any, asked: Any, names: Sequence[str], manager: Any, limit: int | None, shots: int | None
) -> dict[str, Any]:
    try:
        results: dict[str, Any] = library.simple_evaluate(
            asked,
            tasks=list(names),
            task_manager=manager,
            limit=limit,
            num_fewshot=shots,
            bootstrap_iters=0,
            log_samples=True,
        )
    except InputError:
        raise
    except Exception as error:
        raise _not_run(names, error) from error
    return results


def _not_run(names: Sequence[str], error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return InputError(
        f"lm_eval could not run {', '.join(names)}: {reason}",
        "kanna fetches nothing: its data must be in the local cache of datasets (run lm_eval once with a "
        "network), or give your own task file whose dataset_path is json",
    )


def headline_of(metrics: Iterable[str]) -> str:
    """The metric that a task is judged by: the first of these that it has, else its own first."""
    names = list(metrics)
    return next((headline for headline in _HEADLINES if headline in names), names[0])


def _score(name: str, results: dict[str, Any], settings: dict[str, Any], notes: tuple[str, ...]) -> TaskScore:
    """One task from lm_eval's results, which name metrics as `acc,none`."""
    samples, kept = _first_filter(results["samples"][name])
    config = results["configs"][name]
    chooses = config.get("output_type") == "multiple_choice"
    rolling = config.get("output_type") == "loglikelihood_rolling"
    higher = results["higher_is_better"].get(name, {})
    own = _metrics(results["results"][name], kept)
    if not own:
        raise InputError(f"lm_eval found no metric that is a number for {name}", "give another task")
    metric = headline_of(own)
    scale = scale_of(metric, own[metric], [sample.get(metric) for sample in samples], higher.get(metric))
    records = [_record(i, sample, chooses, rolling) for i, sample in enumerate(samples)]
    records = _scaled(records, metric, scale)
    kind = TEXT if rolling else CHOICE if chooses else ANSWER
    data = {"task": name, "version": results["versions"].get(name), **settings}
    places = Counter(record.label for record in records)
    floors = {} if None in places else {"constant": places.most_common(1)[0][1] / len(records)}
    shots = results.get("n-shot", {}).get(name)
    note = note_on(metric, scale)
    return TaskScore.of(
        task=f"lm_eval:{name}",
        kind=kind,
        metric=metric,
        higher_is_better=scale.higher_is_better is not False,
        metrics=own,
        floors=floors,
        records=tuple(records),
        notes=notes if note is None else (note, *notes),
        settings=data | {"shots": shots},
    )


def _first_filter(samples: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """A task may filter its answers in several ways; lm_eval logs a sample for each. The first way counts."""
    first = str(samples[0]["filter"])
    kept = [sample for sample in samples if sample["filter"] == first]
    return sorted(kept, key=lambda sample: int(sample["doc_id"])), first


def _metrics(results: dict[str, Any], kept: str) -> dict[str, float]:
    """Metric -> value, of the records' filter; those of other filters have its name behind theirs."""
    values: dict[str, float] = {}
    for key, value in results.items():
        name, comma, way = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float):
            values[name if way == kept else f"{name} ({way})"] = float(value)
    return values


def _scaled(records: Sequence[Record], metric: str, scale: Scale) -> list[Record]:
    """With values that the score is made of, or none, and `right` where they are rights and wrongs."""
    others = [{key: value for key, value in record.values.items() if key != metric} for record in records]
    if not scale.judged:
        kept = zip(records, others, strict=True)
        return [replace(record, values=_without_text(values), right=None) for record, values in kept]
    binary = not scale.likelihood and all(one[metric] in (0.0, 1.0) for one in scale.values)
    return [
        replace(
            record,
            values={**values, **own},
            right=bool(own[metric]) == scale.higher_is_better if binary else None,
        )
        for record, values, own in zip(records, others, scale.values, strict=True)
    ]


def _without_text(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if key not in ("nll", "tokens")}


def _record(number: int, sample: dict[str, Any], chooses: bool, rolling: bool) -> Record:
    arguments = [list(argument) for argument in sample["arguments"]]
    values = {key: float(sample[key]) for key in sample["metrics"] if isinstance(sample[key], int | float)}
    prompt = str(arguments[0][0])
    if rolling:
        total = float(sample["filtered_resps"][0])
        values |= {"nll": -total, "tokens": float(max(1, len(prompt.split())))}
        return Record(number, prompt[:200], "", "", None, values)
    if not chooses:
        written = sample["filtered_resps"][0]
        text = written[0] if isinstance(written, list | tuple) else written
        return Record(number, prompt, str(sample["target"]), str(text), None, values)
    return _choice(number, sample, arguments, values)


def _choice(
    number: int,
    sample: dict[str, Any],
    arguments: list[list[Any]],
    values: dict[str, float],
) -> Record:
    sums = [float(response[0]) for response in sample["filtered_resps"]]
    if _MUTUAL in sample["metrics"]:  # the second half are the choices after nothing
        sums = sums[: len(sums) // 2]
    chosen = max(range(len(sums)), key=lambda i: sums[i])
    target = sample["target"]
    label = int(target) if isinstance(target, int) and 0 <= target < len(sums) else None
    if label is not None:
        values["log_loss"] = -sums[label]
    top = max(sums)
    total = sum(math.exp(log - top) for log in sums)
    texts = [str(argument[1]) if len(argument) > 1 else str(argument[0]) for argument in arguments]
    return Record(
        row=number,
        prompt=str(arguments[0][0]),
        expected=str(target) if label is None else texts[label],
        predicted=texts[chosen],
        right=None,
        values=values,
        label=label,
        chosen=chosen,
        confidence=1 / total,
    )


def _library() -> Any:
    before = set(os.environ)
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(
            "lm_eval:... needs lm-evaluation-harness, which is not installed", _INSTALL
        ) from error
    finally:  # when imported, it sets variables that tell huggingface_hub how to fetch
        for name in [name for name in os.environ if name.startswith("HF_") and name not in before]:
            del os.environ[name]
    return lm_eval


def _check_names(names: Sequence[str], manager: Any) -> None:
    known = list(manager.all_tasks)
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 5)) or "see lm_eval ls tasks"
            raise InputError(
                f"lm_eval knows no task {name!r}", f"near it: {near}; add your own with --include DIR"
            )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Nothing is fetched: the libraries, which look at their environment only when imported, are told so."""
    places = [import_module(name) for name in ("huggingface_hub.constants", "datasets.config")]
    before = [getattr(place, _OFFLINE) for place in places]
    for place in places:
        setattr(place, _OFFLINE, True)
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, _OFFLINE, value)


@contextlib.contextmanager
def _seeds_kept() -> Iterator[None]:
    """lm_eval seeds all generators of the process; the caller gets them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=cards):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm_eval prints progress and warnings of its own; standard output is for results."""
    names = ("lm_eval", "datasets")
    levels = {name: logging.getLogger(name).level for name in names}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
