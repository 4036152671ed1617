"""The rows that a step learns from, split, checked, and as examples."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from kanna.errors import InputError
from kanna.models.inventory import Inventory
from kanna.runs.source import Source
from kanna.tasks.data.overlap import shared
from kanna.tasks.data.rows import Row, read_rows, rejoined
from kanna.tasks.data.split import split_rows
from kanna.tasks.data.task import Task
from kanna.tasks.scorers.architecture import check_joiner
from kanna.tasks.scorers.classifier import classifies, labels_of, match
from kanna.tasks.scorers.masked import fills_masks
from kanna.tasks.tokens.cloze import Cloze, mask_token
from kanna.tasks.tokens.encode import Encoder
from kanna.tasks.tokens.padded import vocabulary_of
from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer, predicts_next_token
from kanna.training.examples import Example, Examples, answered, labelled, masked, text_windows
from kanna.training.forgotten import held_out
from kanna.training.loop import Course

FEWEST_ROWS = 16
_SPLIT_OFF = 0.1
_SHOWN = 60


def check_machine(source: Source, recompute: bool, precision: str, device: torch.device) -> None:
    """Raise InputError for a way of training that the model or the machine does not have."""
    if recompute and not getattr(source.skeleton, "supports_gradient_checkpointing", False):
        raise InputError(
            f"{source.inventory.architecture} cannot compute activations again", "leave out --recompute"
        )
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError(f"{device} does not compute in bfloat16", "leave out --precision")


def activation_bytes(inventory: Inventory, longest: int, rows: int, recompute: bool) -> int:
    """Of a step of so many rows of at most so many tokens, predicted: float32, kept for the way back."""
    width = max(matrix.in_features for matrix in inventory.matrices)
    tokens = min(Course(steps=1).tokens, rows * longest)
    layers = 2 if recompute else len(inventory.blocks)
    return 4 * tokens * (12 * width * layers + 4 * longest * layers)


class Asked(Protocol):
    """What the configuration of a step that learns says of its rows.

    Attributes:
        data: Rows of the task.
        validation: Rows to choose the best state on; None splits a tenth of the data off.
        replay: Text that must not be forgotten.
        text: Text that is not learnt; None takes a tenth of `replay`.
        allow_overlap: Whether rows that are asked, or of which the loss is told, may be learnt, too.
        chat: Put prompts into the chat template.
        context: Most tokens of a row.
        seed: Of the split.
    """

    @property
    def data(self) -> Path: ...
    @property
    def validation(self) -> Path | None: ...
    @property
    def replay(self) -> Path | None: ...
    @property
    def text(self) -> Path | None: ...
    @property
    def allow_overlap(self) -> bool: ...
    @property
    def chat(self) -> bool: ...
    @property
    def context(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Data:
    """Examples, ready to be learnt.

    Args:
        train: Of the rows.
        validation: Of rows that are not learnt.
        replay: Of text.
        text: Of text that is not learnt, on which it is seen what is forgotten.
        digest: sha256 of all files, and of what was put between prompts and answers.
    """

    train: Examples
    validation: Examples
    replay: tuple[Example, ...]
    text: tuple[Example, ...]
    digest: str

    @property
    def held_out_digest(self) -> str:
        """sha256 of the examples on which states are chosen: losses of runs that share it can be compared."""
        held = [
            [one.ids, one.scored, one.label, *([] if one.filled is None else [one.filled])]
            for one in self.validation.all
        ]
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(
            len(example) for example in (*self.train.all, *self.validation.all, *self.replay, *self.text)
        )


def read_data(source: Source, config: Asked, asked: Sequence[Task], joiner: str | None = None) -> Data:
    """Read and check the files.

    Args:
        asked: Tasks that the result is judged on.
        joiner: What stands between prompt and answer, as on those tasks; see `joined`.

    Raises:
        InputError: Whatever is wrong with the files, or rows that are asked, too.
    """
    given = (config.data, config.validation, config.replay, config.text)
    files = [path.expanduser() for path in given if path is not None]
    rows = read_rows(files[0])
    held_rows = [] if config.validation is None else read_rows(config.validation.expanduser())
    replayed = [] if config.replay is None else read_rows(config.replay.expanduser())
    text = [] if config.text is None else read_rows(config.text.expanduser())
    if len(rows) < FEWEST_ROWS:
        raise InputError(
            f"{config.data} has {len(rows)} rows; at least {FEWEST_ROWS} are needed", "give more rows"
        )
    if not config.allow_overlap:
        for path, some in ((config.data, rows), (config.validation, held_rows), (config.replay, replayed)):
            if path is not None:
                _refuse_overlap(path, some, asked)
        _refuse_learnt(config.data, rows, config.validation, held_rows)
        _refuse_learnt(config.replay, replayed, config.text, text)
    train, validation = list(enumerate(rows, 1)), list(enumerate(held_rows, 1))
    if config.validation is None:
        apart, kept = split_rows(rows, _SPLIT_OFF, config.seed % 2**63)
        train, validation = [train[i] for i in kept], [train[i] for i in apart]
    made = _maker(source, config, joiner)
    if joiner is not None:
        templated = config.chat or any(row.messages for row in (*rows, *held_rows))
        check_joiner(source.name, source.checkpoint.config, templated)
        replayed, text = list(rejoined(replayed, joiner)), list(rejoined(text, joiner))
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))
    if joiner is not None:
        digest.update(b"joiner" + joiner.encode())
    learnt, held = _texts(made, replayed, text)
    with _told_where(config.data):
        examples = made.examples(train)
    with _told_where(config.validation or config.data):
        apart_examples = made.examples(validation)
    return Data(examples, apart_examples, learnt, held, digest.hexdigest())


@contextlib.contextmanager
def _told_where(path: Path) -> Iterator[None]:
    """What is wrong with a row is told with the name of its file: there may be several."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error.problem}", error.remedy) from error


def _texts(
    made: "_Maker", replay: Sequence[Row], text: Sequence[Row]
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Windows that are learnt beside the rows, and windows that are not."""
    learnt = made.text(replay, "--replay")
    return (learnt, made.text(text, "--text")) if text else held_out(learnt)


def _refuse_overlap(data: Path, rows: Sequence[Row], asked: Sequence[Task]) -> None:
    for task in asked:
        both = shared(rows, task.rows)
        if both:
            number, row = both[0]
            raise InputError(
                f"{len(both):,} of the {len(task.rows):,} rows of {task.name} are in {data} too, the "
                f"first in row {number}: {(row.prompt or row.text)[:_SHOWN]!r}",
                "judge on rows that were not learnt, or add --allow-overlap",
            )


def _refuse_learnt(data: Path | None, rows: Sequence[Row], held: Path | None, apart: Sequence[Row]) -> None:
    """Raise InputError where rows are learnt whose loss is to be that of rows that are not."""
    both = shared(rows, apart)
    if both:
        number, row = both[0]
        raise InputError(
            f"{len(both):,} of the {len(apart):,} rows of {held}, which are not to be learnt, are in {data} "
            f"too, the first in row {number}: {(row.prompt or row.text)[:_SHOWN]!r}",
            "give other rows, or add --allow-overlap",
        )


@dataclass(frozen=True)
class _Maker:
    """Rows to examples, for one kind of model.

    Args:
        tokenizer: Of the model.
        length: Most tokens.
        labels: Of a classification head; None for a language model.
        chat: Put prompts into the template.
        masks: The model fills masks.
        vocabulary: How many tokens the model has embeddings of.
        joiner: What stands between prompt and answer.
    """

    tokenizer: Any
    length: int
    labels: tuple[str, ...] | None
    chat: bool
    masks: bool
    vocabulary: int | None
    joiner: str | None

    def examples(self, numbered: Sequence[tuple[int, Row]]) -> Examples:
        """Of rows with their numbers in the file."""
        numbers, rows = [number for number, _ in numbered], [row for _, row in numbered]
        if self.masks:
            cloze = Cloze(self.tokenizer, self.length, joiner=self.joiner)
            return masked(rows, cloze, self.vocabulary, numbers)
        if self.labels is None:
            encoder = Encoder(
                self.tokenizer, self.length, self.chat, vocabulary=self.vocabulary, joiner=self.joiner
            )
            return answered(rows, encoder, numbers)
        without = next((number for number, row in numbered if not row.choices), None)
        if without is not None:
            raise InputError(
                f"row {without} has no choices, and a classification head learns the label of a choice",
                'give rows such as {"prompt": "...", "choices": [...], "label": 0}',
            )
        places = match(self.labels, [row.choices for row in rows])
        right = [places[i][row.label] for i, row in enumerate(rows) if row.label is not None]
        return labelled(rows, self.tokenizer, right, self.length, self.vocabulary)

    def text(self, rows: Sequence[Row], option: str) -> tuple[Example, ...]:
        if not rows:
            return ()
        if self.labels is not None or self.masks:
            what = "masked language model" if self.masks else "classification head"
            raise InputError(f"a {what} does not predict text", f"leave out {option}")
        return text_windows(rows, self.tokenizer, self.length, self.vocabulary).all


def _maker(source: Source, config: Asked, joiner: str | None) -> _Maker:
    loaded = source.checkpoint.config
    labels = labels_of(loaded) if classifies(loaded) else None
    masks = fills_masks(loaded)
    if labels is None and loaded.get("is_encoder_decoder"):
        raise InputError(
            f"{source.name} is {loaded.get('architectures')}: an encoder with a decoder is not trained",
            "compress it with kanna lowrank, or give a model of one stack",
        )
    if labels is None and not masks and not predicts_next_token(loaded):
        raise InputError(
            f"{source.name} is {loaded.get('architectures')}: only causal and masked language models and "
            "classification heads are trained",
            "give such a model, or compress this one with kanna lowrank",
        )
    tokenizer = load_tokenizer(source.directory)
    if masks:
        mask_token(tokenizer)
    if config.chat and masks:
        raise InputError(f"{source.name} is a masked language model, which knows no chat", "leave out --chat")
    if config.chat and not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{source.name} has no chat template", "leave out --chat")
    length = context_length(loaded, tokenizer, config.context)
    known = vocabulary_of(source.skeleton)
    return _Maker(tokenizer, length, labels, config.chat, masks, known, joiner)
