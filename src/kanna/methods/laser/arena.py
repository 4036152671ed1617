"""Where edits are tried: a model and rows, as the options of a search say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanna.checkpoint import lineage
from kanna.errors import InputError
from kanna.forms import Dense
from kanna.methods.laser.search_config import CONSTRAINED, PUBLISHED, SearchOptions
from kanna.methods.laser.space import Candidate, space
from kanna.methods.laser.step import STEP
from kanna.methods.laser.validation import Validation
from kanna.methods.laser.weights import Weights
from kanna.models.device import device_of
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix
from kanna.models.selection import select
from kanna.progress import Progress
from kanna.runs.assemble import densify
from kanna.runs.criteria import Criteria
from kanna.runs.source import Source
from kanna.tasks.data.parts import by_groups, parts_of
from kanna.tasks.data.rows import read_rows
from kanna.tasks.data.split import split_rows
from kanna.tasks.data.task import HARNESS, Task
from kanna.tasks.evaluate import Prepared, headline
from kanna.tasks.journal import Journal
from kanna.tasks.metrics.summaries import breakdown, check_key
from kanna.tasks.metrics.user_metric import metric_info, parse_user_metric
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import ANSWER, CHOICE, SCORING, TEXT, TaskScore
from kanna.tasks.scorers.classifier import classifies
from kanna.tasks.scorers.edited import EditedTask
from kanna.tasks.scorers.perplexity import score_text
from kanna.tasks.scorers.resumed import applied
from kanna.tasks.tokens.tokenizer import context_length, predicts_next_token

# Fewer validation rows cannot tell one edit from another.
FEWEST_VALIDATION_ROWS = 20


@dataclass(frozen=True)
class Arena:
    """A loaded model, a task in two parts, and what may be tried.

    Args:
        source: The model on disk.
        plan: The evaluation.
        task: All rows of the task.
        choosing: Places of the validation rows, in the order of the parts.
        parts: How many rows each part has.
        test: The rows of the final figure.
        model: In float32, in evaluation mode.
        found: Its inventory.
        weights: Of candidates.
        matrices: Those that may be reduced.
        options: Of the search.
        perplexities: Those measured so far, by the edits.
    """

    source: Source
    plan: Prepared
    task: Task
    choosing: tuple[int, ...]
    parts: tuple[int, ...]
    test: Task
    model: nn.Module
    found: Inventory
    weights: Weights
    matrices: tuple[Matrix, ...]
    options: SearchOptions
    perplexities: dict[tuple[str, ...], float] = field(default_factory=dict)

    @property
    def validation_task(self) -> Task:
        return replace(self.task, rows=tuple(self.task.rows[place] for place in self.choosing))

    def candidates(self) -> list[Candidate]:
        """Of a matrix that is stored in factors only ranks that factors can have."""
        return [
            candidate
            for candidate in space(self.matrices, self.found.matrices, self.options.rhos, self.options.blocks)
            if isinstance(self.source.form(candidate.matrix), Dense)
            or (candidate.rank > 0 and candidate.blocks == 1)
        ]

    def validation(self, journal: Journal, directory: Path | None) -> Validation:
        return Validation(
            self.plan, self.validation_task, self.parts, self.model, self.found, self.weights, journal,
            self.options.memory, directory,
        )  # fmt: skip

    def scored(
        self, task: Task, candidates: Sequence[Candidate], modes: Sequence[str], progress: Progress
    ) -> list[TaskScore]:
        """Rows under the model as it is, then with these edits together in each mode of `reduce`."""
        rows = EditedTask(self.plan, task, self.model, self.found, self.options.memory)
        try:
            base = rows.base(progress, {min(candidate.matrix.layer for candidate in candidates)})
            variants = [self.weights.edits(candidates, mode, self.options.seed) for mode in modes]
            return [base, *rows.edited(variants, progress)]
        finally:
            rows.close()

    def by_key(self, task: Task, scores: Mapping[str, TaskScore]) -> dict[str, Any] | None:
        """The key of the rows by which scores are asked for, and the scores by it; None where none is."""
        if self.options.by is None:
            return None
        groups = {name: breakdown(score, task.rows, self.options.by) for name, score in scores.items()}
        return {"key": self.options.by, **groups}

    def perplexity(self, candidates: Sequence[Candidate]) -> float:
        """Of the text, with these edits; measured once."""
        edits = tuple(candidate.key for candidate in candidates)
        if edits in self.perplexities:
            return self.perplexities[edits]
        assert self.options.text is not None
        rows = read_rows(self.options.text)
        context = context_length(self.plan.config, self.plan.tokenizer, self.plan.options.context)
        with applied(self.model, self.weights.edits(candidates)):
            _, scored = score_text(
                self.model, self.plan.tokenizer, rows, context, max(1, context // 2),
                self.options.text_tokens, lambda *_: None,
            )  # fmt: skip
        self.perplexities[edits] = scored.perplexity
        return scored.perplexity


def open_arena(
    model: str | Path,
    task: str | Path,
    options: SearchOptions,
    evaluation: EvalOptions,
    criteria: Criteria | None = None,
    whole: bool = False,
) -> Arena:
    """Read and check everything, split the rows, load the model.

    Args:
        criteria: Their tasks are read, too, so that nothing is wrong with them in the end.
        whole: All rows are both validation and test rows, for what chooses nothing.

    Raises:
        InputError: A quantised or unknown model, an unknown role or layer, rho outside 0 to 1, a task of
            plain text, too few validation rows, a metric that is not better when higher.
    """
    device_of(evaluation.device)
    source = Source.open(model)
    source.check_forms(STEP.accepts, "laser", STEP.instead)
    _check_kind(source)
    plan = source.opened.prepared(_files(task, options), evaluation)
    if criteria is not None:
        source.opened.prepared_for(criteria, evaluation)
    first = plan.tasks[0]
    _check_task(plan, first, options)
    every = tuple(range(len(first.rows)))
    choosing, rest = (every, every) if whole else _split(first, options)
    test = replace(first, rows=tuple(first.rows[i] for i in rest)) if options.test is None else plan.tasks[1]
    _check_test(first, test, options)
    groups = by_groups(first.rows, choosing, options.seed)
    parts = parts_of(groups, options.budget.part_sizes())
    loaded = _dense_model(source, evaluation)
    listed = inventory(loaded)
    matrices = select(listed.matrices, options.selection)
    arena = Arena(
        source=source,
        plan=plan,
        task=first,
        choosing=tuple(place for part in parts for place in part),
        parts=tuple(map(len, parts)),
        test=test,
        model=loaded,
        found=listed,
        weights=Weights(loaded, lambda matrix: source.dtype(matrix.module)),
        matrices=matrices,
        options=options,
    )
    arena.candidates()  # raises where a rho is out of range
    return arena


def _check_kind(source: Source) -> None:
    """Raise InputError for a model whose edits are not searched."""
    kind = None
    if classifies(source.checkpoint.config):
        kind = "has a classification head"
    elif source.inventory.has_decoder_apart:
        kind = "is an encoder-decoder"
    if kind is not None:
        raise InputError(
            f"{source.checkpoint.name} {kind}, whose edits are not searched",
            "give a causal or a masked language model; kanna laser apply takes any",
        )


def _dense_model(source: Source, evaluation: EvalOptions) -> nn.Module:
    """The model in memory; edits are tried on dense weights, whatever form they are stored in."""
    loaded = source.opened.loaded(evaluation)
    densify(loaded, [path for path, layer in source.declared.items() if layer.geometry.transposed])
    return loaded


def _files(task: str | Path, options: SearchOptions) -> list[str | Path]:
    """Files of rows; plain text and tasks of lm_eval have none to choose by."""
    files = [task] if options.test is None else [task, options.test]
    for file in files:
        if str(file).startswith(HARNESS):
            raise InputError(f"{file} cannot be searched on", "give a file of rows with answers or choices")
    return files


def _check_test(task: Task, test: Task, options: SearchOptions) -> None:
    if test.kind != task.kind:
        raise InputError(
            f"{test.name} holds rows of kind {test.kind}, {task.name} of kind {task.kind}",
            "give test rows of the same kind",
        )
    if options.by is not None:
        check_key(test.name, test.rows, options.by)


def _check_task(plan: Prepared, task: Task, options: SearchOptions) -> None:
    if task.kind not in (CHOICE, ANSWER):
        what = "is plain text" if task.kind == TEXT else "is about embeddings"
        raise InputError(f"{task.name} {what}", "give rows with answers or choices")
    metric = headline(task, plan.options)
    own = parse_user_metric(metric)
    higher = not own.lower_is_better if own else metric_info(metric, task.kind).higher_is_better
    if metric == "bleu" or not higher:
        raise InputError(
            f"{metric} cannot be searched on: it is no mean over rows where more is better",
            "choose a metric such as acc, greedy, exact or f1",
        )
    if options.text is not None:
        if not predicts_next_token(plan.config):
            raise InputError(f"{plan.name} is no causal language model", "leave out --text")
        read_rows(options.text)
    if options.rule not in (PUBLISHED, CONSTRAINED):
        raise InputError(f"there is no rule {options.rule!r}", f"choose {CONSTRAINED} or {PUBLISHED}")


def _split(task: Task, options: SearchOptions) -> tuple[Sequence[int], Sequence[int]]:
    """Places of the validation rows and of the test rows."""
    rows = len(task.rows)
    if not 0 < options.share < 1:
        raise InputError(f"the validation share {options.share} is not between 0 and 1", "give 0.2 or so")
    choosing: Sequence[int]
    rest: Sequence[int]
    if options.test is not None:
        choosing, rest = range(rows), ()
    elif options.first:
        count = int(options.share * rows)
        choosing, rest = range(count), range(count, rows)
    else:
        choosing, rest = split_rows(task.rows, options.share, options.seed)
    if len(choosing) < FEWEST_VALIDATION_ROWS:
        needed = FEWEST_VALIDATION_ROWS if options.test else ceil(FEWEST_VALIDATION_ROWS / options.share)
        raise InputError(
            f"{task.name} leaves {len(choosing)} of {rows} rows for validation, too few to tell edits apart",
            f"give a task of at least {needed} rows, or a larger --validation-share",
        )
    return choosing, rest


def fingerprint(arena: Arena, more: object = None) -> str:
    """sha256 of all that a search on this arena depends on."""
    options = arena.plan.options
    facts = {
        "base": arena.source.hash,
        "task": [arena.task.digest, arena.test.digest],
        "text": None if arena.options.text is None else lineage.file_digest(arena.options.text),
        "options": arena.options.to_dict(),
        "evaluation": {key: str(value) for key, value in options},
        "scoring": SCORING,
        "versions": lineage.versions(),
        "threads": torch.get_num_threads(),
        "more": more,
    }
    return lineage.digest_of(facts)
