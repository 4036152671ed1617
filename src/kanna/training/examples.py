"""Rows of the user become examples: token ids, and which of them the model is to predict.

Prompt and answer are parted by the encoder of the evaluation, or by its masks, so what is trained is what is
scored. The token that ends texts, or a turn of a chat, belongs to the answer: a model that was never taught
to stop does not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.data.spoken import Message
from kanna.tasks.tokens.chat import check_template, encoded, end_of_turn
from kanna.tasks.tokens.cloze import Cloze
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
        filled: Of masked language models, the tokens that belong where `scored` says, in order: `ids` has
            masks there, and nothing is predicted from what is before it alone. None for other models.
    """

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    label: int | None = None
    filled: tuple[int, ...] | None = None

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
    numbers = numbers or range(1, len(rows) + 1)
    _check_answered(rows, numbers)
    spoken = [bool(row.messages) for row in rows]
    if any(spoken):
        _check_all_spoken(spoken, numbers, encoder.tokenizer)
        talk = replace(encoder, templated=True)
        makers = [partial(conversed, row.messages, talk) for row in rows]
    else:
        ended = end_of_turn(encoder) if encoder.chat else _end_of_text(encoder.tokenizer)
        check_known(ended, encoder.vocabulary, encoder.tokenizer)
        makers = [partial(_answered, row, encoder, ended) for row in rows]
    return _gathered(makers, numbers, encoder.limit)


def masked(
    rows: Sequence[Row], cloze: Cloze, vocabulary: int | None = None, numbers: Sequence[int] = ()
) -> Examples:
    """Examples for a model that fills masks: an answer of n tokens at n masks, as it is scored.

    Args:
        vocabulary: How many tokens the model has embeddings of; None where that is not known.
        numbers: Of the rows in their file, for messages; from 1 where none are given.

    Raises:
        InputError: A row without an answer, one too long for the context, or every prompt cut.
    """
    if any(row.messages for row in rows):
        raise InputError(
            "the rows are conversations, and a masked language model knows no chat template",
            'give rows such as {"prompt": "...", "answer": "..."}',
        )
    numbers = numbers or range(1, len(rows) + 1)
    _check_answered(rows, numbers)
    return _gathered([partial(_masked, row, cloze, vocabulary) for row in rows], numbers, cloze.limit)


Made = tuple[Example, bool]


def _gathered(makers: Sequence[Callable[[], Made]], numbers: Sequence[int], limit: int) -> Examples:
    """What each row becomes, and how many were cut; errors are told their row.

    Raises:
        InputError: That of a row, or every row was cut.
    """
    made = [_of_row(number, make) for number, make in zip(numbers, makers, strict=True)]
    cut = sum(was_cut for _, was_cut in made)
    if made and cut == len(made):
        raise InputError(
            f"every one of the {len(made)} prompts is longer than the context of {limit} tokens",
            "raise --context, or shorten the prompts",
        )
    return Examples(tuple(example for example, _ in made), cut)


def _of_row(number: int, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except InputError as error:
        raise InputError(f"row {number}: {error.problem}", error.remedy) from error


def _check_answered(rows: Sequence[Row], numbers: Sequence[int]) -> None:
    for number, row in zip(numbers, rows, strict=True):
        if not row.prompt or not row.answer.strip():
            raise InputError(
                f"row {number} has no {'answer' if row.prompt else 'prompt'} to learn",
                'give rows such as {"prompt": "...", "answer": "..."}',
            )


def _check_all_spoken(spoken: Sequence[bool], numbers: Sequence[int], tokenizer: Any) -> None:
    check_template(tokenizer, "rows of messages")
    if not all(spoken):
        talk, other = numbers[spoken.index(True)], numbers[spoken.index(False)]
        raise InputError(
            f"row {talk} is a conversation and row {other} is none", "make a file of each kind of rows"
        )


def _end_of_text(tokenizer: Any) -> tuple[int, ...]:
    end = tokenizer.eos_token_id
    return () if end is None else (int(end),)


def _answered(row: Row, encoder: Encoder, ended: tuple[int, ...]) -> Made:
    room = replace(encoder, limit=encoder.limit - len(ended))
    (piece,) = room.pieces(row.said if encoder.chat and row.said else row.prompt, [row.answer])
    there = bool(ended) and piece.target[-len(ended) :] == ended
    target = piece.target if there else piece.target + ended
    scored = (False,) * len(piece.context) + (True,) * len(target)
    return Example(piece.context + target, scored), bool(piece.cut)


def conversed(messages: Sequence[Message], encoder: Encoder) -> Made:
    """A conversation: every turn of the assistant is scored that has not lost its beginning.

    Raises:
        InputError: The last turn does not fit, or the template is refused; see `encoded`.
    """
    talk = encoded(encoder, messages)
    # The last token is predicted, not read.
    kept = encoder.shortened(talk.ids, encoder.limit + 1)
    lost = len(talk.ids) - len(kept)
    first = encoder.begun(talk.ids) + lost if lost else 0
    whole = [turn for turn in talk.turns if turn.start > first]
    last = talk.turns[-1]
    if last not in whole:
        raise InputError(
            f"the last answer has {last.end - last.start} tokens, and the model reads {encoder.limit}",
            "shorten it, or raise --context",
        )
    places = {place - lost for turn in whole for place in range(turn.start, turn.end)}
    return Example(tuple(kept), tuple(place in places for place in range(len(kept)))), bool(lost)


def _masked(row: Row, cloze: Cloze, vocabulary: int | None) -> Made:
    blank = cloze.blank(row.prompt)
    target = cloze.target(blank, row.answer)
    text = cloze.masked(blank, len(target))
    for ids in (text.ids, target):
        check_known(ids, vocabulary, cloze.tokenizer)
    places = set(text.places)
    scored = tuple(place in places for place in range(len(text.ids)))
    return Example(text.ids, scored, filled=target), bool(text.cut)


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
