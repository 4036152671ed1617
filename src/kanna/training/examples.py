"""Rows of the user become examples: token ids, and which of them the model is to predict.

Prompt and answer are parted by the encoder of the evaluation, so what is trained is what is scored. The token
that ends texts belongs to the answer: a model that was never taught to stop does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.tokens.encode import Encoder
from kanna.tasks.tokens.padded import Wrapped, wrapped
from kanna.tasks.tokens.special import check_known


@dataclass(frozen=True)
class Example:
    """What the model reads in one row, and what of it counts.

    Args:
        ids: Tokens.
        scored: Of each token, whether it is to be predicted from those before it; never the first.
        label: Output of a classification head that is right; None for language models.
    """

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    label: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many predictions count."""
        return sum(self.scored) if self.label is None else 1


@dataclass(frozen=True)
class Examples:
    """Of a file of rows.

    Args:
        all: One a row; of text, one a window.
        cut: Prompts that lost their beginning to fit the context.
    """

    all: tuple[Example, ...]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.all)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.all))

    @property
    def targets(self) -> int:
        return sum(example.targets for example in self.all)


def answered(rows: Sequence[Row], encoder: Encoder, numbers: Sequence[int] = ()) -> Examples:
    """Examples of rows with a prompt and an answer; of rows with choices, the right one is the answer.

    Args:
        numbers: Of the rows in their file, for messages; from 1 where none are given.

    Raises:
        InputError: A row without an answer, one too long for the context, or every prompt cut.
    """
    made = [
        _answered(number, row, encoder)
        for number, row in zip(numbers or range(1, len(rows) + 1), rows, strict=True)
    ]
    cut = sum(was_cut for _, was_cut in made)
    if made and cut == len(made):
        raise InputError(
            f"every one of the {len(made)} prompts is longer than the context of {encoder.limit} tokens",
            "raise --context, or shorten the prompts",
        )
    return Examples(tuple(example for example, _ in made), cut)


def _answered(number: int, row: Row, encoder: Encoder) -> tuple[Example, bool]:
    if not row.prompt or not row.answer.strip():
        raise InputError(
            f"row {number} has no {'answer' if row.prompt else 'prompt'} to learn",
            'give rows such as {"prompt": "...", "answer": "..."}',
        )
    end = encoder.tokenizer.eos_token_id
    ended = () if end is None else (int(end),)
    room = replace(encoder, limit=encoder.limit - len(ended))
    try:
        (piece,) = room.pieces(row.prompt, [row.answer])
    except InputError as error:
        raise InputError(f"row {number}: {error.problem}", error.remedy) from error
    check_known(ended, encoder.vocabulary, encoder.tokenizer)
    target = piece.target if piece.target[-1:] == ended else piece.target + ended
    scored = (False,) * len(piece.context) + (True,) * len(target)
    return Example(piece.context + target, scored), bool(piece.cut)


def text_windows(rows: Sequence[Row], tokenizer: Any, length: int, vocabulary: int | None = None) -> Examples:
    """Examples of plain text: the rows joined by the token that ends texts, cut into windows.

    Args:
        length: Tokens of a window; the last one may be shorter, and has at least two.
        vocabulary: How many tokens the model has embeddings of; None where that is not known.

    Raises:
        InputError: A token that the model does not know.
    """
    stream: list[int] = []
    for row in rows:
        stream += tokenizer(row.text, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None and stream[-1:] != [tokenizer.eos_token_id]:
            stream.append(int(tokenizer.eos_token_id))
    check_known(stream, vocabulary, tokenizer)
    return Examples(tuple(_windows(stream, length)))


def _windows(stream: Sequence[int], length: int) -> Iterator[Example]:
    for start in range(0, len(stream), length):
        ids = tuple(stream[start : start + length])
        if len(ids) > 1:
            yield Example(ids, (False, *(True,) * (len(ids) - 1)))


def labelled(
    rows: Sequence[Row],
    tokenizer: Any,
    labels: Sequence[int],
    length: int,
    vocabulary: int | None = None,
) -> Examples:
    """Examples for a classification head.

    Args:
        labels: Output of the head that is right for each row.
        length: Most tokens that are read; longer texts lose their beginning, as when they are scored.
    """
    made, cut = [], 0
    for row, label in zip(rows, labels, strict=True):
        text = wrapped(tokenizer, row.prompt)
        over = max(0, len(text) - length)
        ids = Wrapped(text.head, text.body[over:], text.tail).ids
        check_known(ids, vocabulary, tokenizer)
        cut += bool(over)
        made.append(Example(ids, (False,) * len(ids), label))
    return Examples(tuple(made), cut)
