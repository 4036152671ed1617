"""A model on its tasks."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.models.device import device_of, dtype_of
from kanna.models.kinds import answers_what_is_encoded
from kanna.progress import Progress
from kanna.tasks.data.rows import Row
from kanna.tasks.data.task import HARNESS, Task, joined_by, load_tasks
from kanna.tasks.embeddings.modules import Sentences, read_sentences
from kanna.tasks.embeddings.scores import RECALL, SPEARMAN, check_rows, score_task
from kanna.tasks.metrics.summaries import answer_in_prompt, constant_answer, load_costs, summarise
from kanna.tasks.metrics.text_metrics import CONTAINS, check_answers, segmentation_note
from kanna.tasks.metrics.user_metric import METRICS, UserMetric, metric_info, parse_user_metric
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import (
    ANSWER,
    CHOICE,
    EMBEDDED,
    RETRIEVAL,
    SIMILARITY,
    TEXT,
    Evaluation,
    Record,
    TaskScore,
)
from kanna.tasks.scorers.answer import (
    GREEDY,
    Writing,
    default_new_tokens,
    needs_writing,
    score_answers,
    score_choices,
)
from kanna.tasks.scorers.architecture import NO_JOINER, check_joiner, check_model, check_task, class_of
from kanna.tasks.scorers.classifier import ClassifierScorer, classifies, labels_of
from kanna.tasks.scorers.masked import MaskedScorer, fills_masks
from kanna.tasks.scorers.perplexity import Perplexity, score_text
from kanna.tasks.scorers.scorer import CausalScorer, Scorer
from kanna.tasks.scorers.seq2seq import Seq2SeqScorer
from kanna.tasks.tokens.chat import as_asked
from kanna.tasks.tokens.cloze import Cloze
from kanna.tasks.tokens.encode import Encoder
from kanna.tasks.tokens.padded import vocabulary_of
from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer, predicts_next_token

Keep = Callable[[Task, TaskScore], None]
_DEFAULT_METRIC = {
    CHOICE: "acc",
    ANSWER: GREEDY,
    TEXT: "perplexity",
    SIMILARITY: SPEARMAN,
    RETRIEVAL: RECALL,
}
_NO_CHAT = "the tokenizer has a chat template, and prompts were read as they stand: --chat puts them into it"
_STOP = ("\n",)
WRITTEN = "exact"  # a metric of what is written


@dataclass(frozen=True)
class Loaded:
    """A model in memory, as far as an evaluation has to know it.

    Args:
        name: Of the model.
        config: What its config.json would hold.
        bytes: Of its weights.
    """

    name: str
    config: Mapping[str, Any]
    bytes: int


@dataclass(frozen=True)
class Prepared:
    """An evaluation whose every input was read and checked; the model is still to come.

    Args:
        name: Of the model.
        bytes: Of its weights.
        config: Its config.json.
        tokenizer: Its tokenizer.
        tasks: From files.
        harness: Names of lm_eval tasks.
        options: How.
        sentences: From texts to embeddings, where a task is about them.
    """

    name: str
    bytes: int
    config: dict[str, Any]
    tokenizer: Any
    tasks: tuple[Task, ...]
    harness: tuple[str, ...]
    options: EvalOptions
    sentences: Sentences | None = None

    @property
    def context(self) -> int:
        """Most tokens read at once.

        Raises:
            InputError: More were asked for than the model has positions for.
        """
        return context_length(self.config, self.tokenizer, self.options.context)

    def evaluate(
        self, model: nn.Module, progress: Progress = lambda *_: None, keep: Keep = lambda *_: None
    ) -> Evaluation:
        """Score a loaded model; each score of a file is handed to `keep` as soon as it is there."""
        started = time.perf_counter()
        scores = []
        for task in self.tasks:
            try:
                if task.kind == TEXT:
                    scores.append(_text(self, model, task, progress))
                elif task.kind in EMBEDDED:
                    scores.append(_embedded(self, model, task, progress))
                else:
                    scores.append(score_questions(self, make_scorer(self, model, task), task, progress))
            except InputError as error:
                raise InputError(f"{task.name}: {error.problem}", error.remedy) from error
            keep(task, scores[-1])
        scores += _harness(self, model, progress)
        seconds = round(time.perf_counter() - started, 3)
        return Evaluation(model=self.name, bytes=self.bytes, scores=tuple(scores), run={"seconds": seconds})


def prepare(
    model: str | Path | Checkpoint | Loaded,
    tasks: Sequence[str | Path],
    options: EvalOptions,
    texts: Sequence[str | Path] = (),
    *,
    read: Sequence[Task] | None = None,
    tokenizer: Any = None,
) -> Prepared:
    """Read and check all that an evaluation needs but the weights.

    Args:
        texts: Those of `tasks` to be read as plain text.
        read: The files of `tasks`, where they have been read before with the same limit.
        tokenizer: That of the model, where it has been loaded before.

    Raises:
        InputError: Whatever is wrong with the model's directory, a task or the request.
    """
    if not tasks:
        raise InputError(
            "there is nothing to evaluate on", "give --task FILE, --task lm_eval:NAME or --text FILE"
        )
    checkpoint = model if isinstance(model, Checkpoint | Loaded) else Checkpoint.open(model)
    device_of(options.device)
    dtype_of(options.dtype)
    names = [str(task).removeprefix(HARNESS) for task in tasks if str(task).startswith(HARNESS)]
    files = read
    if files is None:
        files = load_tasks(
            [task for task in tasks if not str(task).startswith(HARNESS)], options.limit, texts
        )
    for task in files:
        _check(task, checkpoint, options)
    embeds = [task.kind in EMBEDDED for task in files]
    if isinstance(checkpoint, Checkpoint):
        tokenizer = load_tokenizer(checkpoint.directory) if tokenizer is None else tokenizer
    elif any(embeds):
        raise InputError(
            "how a model embeds texts is read from its directory", "give that, in place of the model"
        )
    check_model(
        checkpoint.name,
        checkpoint.config,
        tokenizer,
        harness=bool(names),
        chat=options.chat,
        embeds=bool(embeds) and all(embeds),
    )
    _check_harness(names, options)
    if options.chat and not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{checkpoint.name} has no chat template", "leave out --chat")
    config = dict(checkpoint.config)
    context_length(config, tokenizer, options.context)
    sentences = None
    if any(embeds) and isinstance(checkpoint, Checkpoint):
        sentences = read_sentences(checkpoint.directory)
    asked = tuple(as_asked(task, tokenizer, options.chat) for task in files)
    if options.joiner is not None:
        _check_joiner(checkpoint, asked, options)
        asked = tuple(joined_by(task, options.joiner) for task in asked)
    return Prepared(
        checkpoint.name, checkpoint.bytes, config, tokenizer, asked, tuple(names), options, sentences
    )


def _check_joiner(checkpoint: Checkpoint | Loaded, tasks: Sequence[Task], options: EvalOptions) -> None:
    """Raise InputError where nothing stands between prompt and answer, or a template says what."""
    templated = options.chat or any(task.templated for task in tasks)
    check_joiner(checkpoint.name, checkpoint.config, templated)
    if not any(task.kind in (CHOICE, ANSWER) for task in tasks):
        raise InputError("--joiner is of rows with prompts and answers, and there are none", NO_JOINER)


def _check_harness(names: Sequence[str], options: EvalOptions) -> None:
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise InputError(f"{HARNESS}{double} is given twice", "name every task once")
    if names:
        from kanna.tasks.scorers.harness import check_names

        check_names(names, options.include)


def _check(task: Task, checkpoint: Checkpoint | Loaded, options: EvalOptions) -> None:
    metric = headline(task, options)
    own = parse_user_metric(metric)
    if task.kind in EMBEDDED:
        check_rows(task, metric, options)
    elif own is None:
        metric_info(metric, task.kind)
        check_answers(metric, task.rows)
    else:
        own.check()
    if options.costs is not None and task.kind in (CHOICE, ANSWER):
        load_costs(options.costs, task.rows)
        if task.kind == ANSWER and own is None and not needs_writing(metric):
            raise InputError(
                f"{task.name}: costs are of what is written in place of an answer, and {metric} writes "
                "nothing",
                "add --metric exact_normalized, or give rows with choices",
            )
    if options.legacy_contains and task.kind == ANSWER and metric != CONTAINS:
        raise InputError(
            f"{task.name}: --legacy-contains says how contains is scored, and the metric is {metric}",
            f"add --metric {CONTAINS}",
        )
    check_task(checkpoint.name, checkpoint.config, task, metric)


def headline(task: Task, options: EvalOptions) -> str:
    """The metric asked for; text takes part with its perplexity beside tasks scored otherwise."""
    if options.metric is None or (task.kind == TEXT and options.metric not in METRICS[TEXT]):
        return _DEFAULT_METRIC[task.kind]
    return options.metric


def score_text_of(
    plan: Prepared, model: nn.Module, task: Task, progress: Progress, batch: int = 8
) -> tuple[list[Record], Perplexity]:
    """Score a task of text, `batch` windows at a time: its records, and what they are together."""
    options = plan.options
    return score_text(
        model, plan.tokenizer, task.rows, plan.context, options.stride, options.tokens, progress, batch
    )


def _text(plan: Prepared, model: nn.Module, task: Task, progress: Progress) -> TaskScore:
    records, scored = score_text_of(plan, model, task, progress)
    return TaskScore.of(
        task=task.name,
        kind=TEXT,
        metric=headline(task, plan.options),
        higher_is_better=False,
        metrics=scored.metrics,
        floors={},
        records=records,
        notes=scored.notes,
        settings={
            "data_sha256": task.digest,
            "context": scored.context,
            "stride": scored.stride,
            "dtype": plan.options.dtype,
            "tokens_scored": scored.scored,
        },
    )


def _embedded(plan: Prepared, model: nn.Module, task: Task, progress: Progress) -> TaskScore:
    assert plan.sentences is not None
    return score_task(plan.sentences, model, plan.tokenizer, task, plan.context, plan.options, progress)


def score_questions(plan: Prepared, scorer: Scorer, task: Task, progress: Progress) -> TaskScore:
    """Score rows with answers or choices by whoever can be asked."""
    options = plan.options
    metric = headline(task, options)
    own = parse_user_metric(metric)
    writing = None
    if task.kind == CHOICE:
        by_length = not classifies(plan.config)
        records = score_choices(scorer, task.rows, metric, progress, by_length=by_length)
    else:
        writing = _writing(scorer, task, metric, own, options)
        records = score_answers(scorer, task.rows, metric, writing, progress)
    records = _judged(records, task, metric, own)
    higher = not own.lower_is_better if own else metric_info(metric, task.kind).higher_is_better
    name = own.name if own else metric
    floors = {"constant": constant_answer(task.rows)[0]}
    if task.kind == ANSWER:
        floors["answer_in_prompt"] = answer_in_prompt(task.rows)
    settings: dict[str, Any] = {
        "data_sha256": task.digest,
        "context": plan.context,
        "dtype": options.dtype,
        "chat": options.chat or task.templated,
        **({} if options.joiner is None else {"joiner": options.joiner}),
    }
    if writing is not None:
        settings |= {"new_tokens": writing.new_tokens, "stop": list(writing.stop), "legacy": writing.legacy}
    return TaskScore.of(
        task=task.name,
        kind=task.kind,
        metric=name,
        higher_is_better=higher,
        metrics=summarise(records, task.rows, name, options.costs),
        floors=floors,
        records=tuple(records),
        notes=_notes(task, scorer, metric, options),
        cut=scorer.work.cut,
        settings=settings,
    )


def _writing(
    scorer: Scorer, task: Task, metric: str, own: UserMetric | None, options: EvalOptions
) -> Writing | None:
    if own is None and not needs_writing(metric):
        return None
    talk = options.chat or task.templated
    stop = options.stop if options.stop is not None else (() if talk else _STOP)
    new = options.new_tokens or default_new_tokens(scorer, task.rows)
    return Writing(new, stop, options.legacy_contains, own is None)


def writes(plan: Prepared) -> bool:
    """Whether models of this architecture write answers at all."""
    return predicts_next_token(plan.config) or (
        not fills_masks(plan.config) and answers_what_is_encoded(class_of(plan.config))
    )


def answers_of(
    plan: Prepared, model: nn.Module, task: Task, rows: Sequence[Row], progress: Progress
) -> list[str]:
    """What a model that `writes` answers to some rows of a task, greedily."""
    scorer = make_scorer(plan, model, task)
    writing = _writing(scorer, task, WRITTEN, None, plan.options)
    assert writing is not None
    return scorer.write([row.asked for row in rows], writing.new_tokens, writing.stop, progress)


def make_scorer(plan: Prepared, model: nn.Module, task: Task) -> Scorer:
    """The way to ask a model of this architecture, which `prepare` has found to be one that can be asked.

    Args:
        task: One of the plan's, or some of its rows.
    """
    options = plan.options
    if predicts_next_token(plan.config):
        known = vocabulary_of(model)
        encoder = Encoder(
            plan.tokenizer,
            plan.context,
            options.chat,
            options.refuse_long,
            known,
            task.templated,
            options.joiner,
        )
        return CausalScorer(model, encoder, options.batch_tokens, options.share)
    if fills_masks(plan.config):
        cloze = Cloze(plan.tokenizer, plan.context, options.refuse_long, options.joiner)
        return MaskedScorer(model, cloze, options.batch_tokens)
    if answers_what_is_encoded(class_of(plan.config)):
        return Seq2SeqScorer(model, plan.tokenizer, plan.context, options.refuse_long, options.batch_tokens)
    return ClassifierScorer(
        model, plan.tokenizer, labels_of(plan.config), plan.context, options.refuse_long, options.batch_tokens
    )


def _judged(records: Sequence[Record], task: Task, metric: str, own: UserMetric | None) -> list[Record]:
    """Records with the headline metric in them, and `right` where it knows right and wrong."""
    if own is None:
        if not metric_info(metric, task.kind).binary:
            return [replace(record, right=None) for record in records]
        return [replace(record, right=record.values[metric] == 1.0) for record in records]
    values = own.score(records, task.rows)
    binary = all(value in (0.0, 1.0) for value in values)
    return [
        replace(
            record,
            values={**record.values, own.name: value},
            right=bool(value) != own.lower_is_better if binary else None,
        )
        for record, value in zip(records, values, strict=True)
    ]


def _notes(task: Task, scorer: Scorer, metric: str, options: EvalOptions) -> tuple[str, ...]:
    notes = list(scorer.work.notes)
    if isinstance(scorer, MaskedScorer) and task.kind == ANSWER:
        notes.append(
            "the masked language model sees one mask for each token of an answer: it is told the length"
        )
    share, answer = constant_answer(task.rows)
    if share == 1.0 and len(task.rows) > 1:
        notes.append(f"{answer!r} is right in every row: a model that always says so is perfect")
    if scorer.work.cut:
        prompts = "1 prompt was" if scorer.work.cut == 1 else f"{scorer.work.cut:,} prompts were"
        notes.append(f"{prompts} longer than the context and cut from the left")
    if isinstance(scorer, CausalScorer) and not (options.chat or task.templated):
        notes += [_NO_CHAT] if getattr(scorer.encoder.tokenizer, "chat_template", None) else []
    notes += dict.fromkeys(scorer.work.layouts)
    if metric in ("f1", "bleu", "rouge1", "rouge2", "rougeL"):
        notes.append(segmentation_note(task.rows))
    if options.legacy_contains and metric == CONTAINS:
        notes.append("legacy rule: the prompt counts as part of the answer")
    return tuple(notes)


def _harness(plan: Prepared, model: nn.Module, progress: Progress) -> list[TaskScore]:
    if not plan.harness:
        return []
    from kanna.tasks.scorers.harness import run_harness

    options = plan.options
    return run_harness(
        model,
        plan.tokenizer,
        plan.harness,
        include=options.include,
        limit=options.limit,
        context=plan.context,
        batch_tokens=options.batch_tokens,
        shots=options.shots,
        share=options.share,
        progress=progress,
    )
