"""Conversations as a model's chat template writes them, and where in them the assistant speaks.

Few templates mark by themselves what the assistant says (`{% generation %}`), so it is found by writing the
beginnings of a conversation: each must be how the whole one begins. Templates of which that is not true, such
as those that leave out of earlier turns what was thought there, show a model other tokens than it would have
written, and are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.data.spoken import ASSISTANT, Message
from kanna.tasks.data.task import Task
from kanna.tasks.tokens.encode import Encoder
from kanna.tasks.tokens.forest import shared_start

# Said by nobody, so that what a template writes around words can be told from them.
_WORDS = "w0rds0f0nobody"
_WITHOUT_MESSAGES = "give rows of prompt and answer, or the model whose template is meant for them"


@dataclass(frozen=True)
class Span:
    """Where the assistant speaks once, in characters of a conversation.

    Args:
        start: Of the words.
        words: Behind the words.
        end: Behind all that the template writes after them.
    """

    start: int
    words: int
    end: int


@dataclass(frozen=True)
class Turn:
    """The tokens of one turn of the assistant: the words, and the token that ends the turn.

    Args:
        start: Place of the first.
        end: Place behind the last.
    """

    start: int
    end: int


@dataclass(frozen=True)
class Conversation:
    """A conversation as token ids, up to the end of the assistant's last turn."""

    ids: tuple[int, ...]
    turns: tuple[Turn, ...]


def check_template(tokenizer: Any, what: str) -> None:
    """Raise InputError unless there is a chat template for `what`."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{what} are read through a chat template, and the tokenizer has none",
            "give rows of prompt and answer, or a model with a chat template",
        )


def as_asked(task: Task, tokenizer: Any, chat: bool) -> Task:
    """A task with what the model is to read in each row, where that is not simply its prompt.

    Args:
        chat: Prompts are put into the chat template; instructions are said there, not laid out.

    Raises:
        InputError: Rows of messages that cannot be written.
    """
    if not any(row.messages for row in task.rows):
        said = any(row.said for row in task.rows) and chat
        rows = tuple(replace(row, asked_as=row.said) if row.said else row for row in task.rows)
        return replace(task, rows=rows) if said else task
    check_template(tokenizer, f"the messages of {task.name}")
    asked = tuple(_asked(number, row, tokenizer) for number, row in enumerate(task.rows, 1))
    return replace(task, rows=asked, templated=True)


def _asked(number: int, row: Row, tokenizer: Any) -> Row:
    try:
        return replace(row, asked_as=written(tokenizer, row.messages[:-1], more=True))
    except InputError as error:
        raise InputError(f"row {number}: {error.problem}", error.remedy) from error


def written(tokenizer: Any, messages: Sequence[Message], more: bool) -> str:
    """What the template makes of messages.

    Args:
        more: The assistant's turn is begun.

    Raises:
        InputError: It does not take them; what it says is told.
    """
    from jinja2 import TemplateError

    given = [message._asdict() for message in messages]
    try:
        return str(tokenizer.apply_chat_template(given, add_generation_prompt=more, tokenize=False))
    except TemplateError as error:
        raise InputError(
            f"the chat template does not take these messages: {error}", _WITHOUT_MESSAGES
        ) from error


def encoded(encoder: Encoder, messages: Sequence[Message]) -> Conversation:
    """Token ids of a conversation, and the assistant's turns in them.

    Args:
        encoder: One whose texts are complete.

    Raises:
        InputError: The template is of a kind that is refused, or a token that the model does not have.
    """
    text, spans = spoken(encoder.tokenizer, messages)
    ids = encoder.ids(text)
    turns = [_turn(encoder, text, ids, span) for span in spans]
    ended = () if _ends(text, spans[-1]) else _end_of_text(encoder)
    last = Turn(turns[-1].start, turns[-1].end + len(ended))
    return Conversation((*ids[: turns[-1].end], *ended), (*turns[:-1], last))


def end_of_turn(encoder: Encoder) -> tuple[int, ...]:
    """What the template puts behind an answer, up to the token that ends the turn; else what ends texts."""
    asked = [Message("user", _WORDS.upper()), Message(ASSISTANT, _WORDS)]
    text = written(encoder.tokenizer, asked, more=False)
    words = text.index(_WORDS) + len(_WORDS) if _WORDS in text else len(text)
    span = Span(words, words, len(text))
    if not _ends(text, span):
        return _end_of_text(encoder)
    ids = encoder.ids(text)
    start = shared_start(ids, encoder.ids(text[:words]))
    return tuple(ids[start : _end(encoder.tokenizer, ids, start, len(ids))])


def spoken(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """A conversation as its template writes it, and where the assistant speaks.

    Raises:
        InputError: The template writes a part of it otherwise than the whole, or other words than were said.
    """
    text = written(tokenizer, messages, more=False)
    places = [place for place, message in enumerate(messages) if message.role == ASSISTANT]
    return text, [_span(tokenizer, messages, place, text) for place in places]


def _span(tokenizer: Any, messages: Sequence[Message], place: int, text: str) -> Span:
    before, content = list(messages[:place]), messages[place].content
    asked = written(tokenizer, before, more=True)
    marked = written(tokenizer, [*before, Message(ASSISTANT, _WORDS)], more=False)
    shown = written(tokenizer, messages[: place + 1], more=False)
    head, found, tail = marked.rpartition(_WORDS)
    stable = found and head.startswith(asked) and shown.startswith(head) and text.startswith(shown)
    if not stable:
        raise InputError(
            f"the chat template is not stable: what it writes of the first {place + 1} of "
            f"{len(messages)} messages is not how the whole conversation begins",
            "give conversations of one question and one answer, or rows of prompt and answer",
        )
    words = shown[len(head) : len(shown) - len(tail)]
    if not shown.endswith(tail) or words.strip() != content.strip():
        raise InputError(
            f"the chat template changes what the assistant says in message {place + 1}", _WITHOUT_MESSAGES
        )
    return Span(len(head), len(head) + len(words.rstrip()), len(shown))


def _turn(encoder: Encoder, text: str, ids: Sequence[int], span: Span) -> Turn:
    # As with any prompt, spaces before the words are theirs.
    start = shared_start(ids, encoder.ids(text[: span.start].rstrip(" ")))
    words, end = (shared_start(ids, encoder.ids(text[:place])) for place in (span.words, span.end))
    return Turn(start, _end(encoder.tokenizer, ids, words, max(words, end)))


def _end(tokenizer: Any, ids: Sequence[int], words: int, end: int) -> int:
    """Behind the first special token after the words; if none is special, behind all that was written."""
    special = set(tokenizer.all_special_ids)
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((place + 1 for place in range(words, end) if ids[place] in special), end)


def _ends(text: str, span: Span) -> bool:
    """Whether the template says in any way that the assistant has ended."""
    return bool(text[span.words : span.end].strip())


def _end_of_text(encoder: Encoder) -> tuple[int, ...]:
    token = encoder.tokenizer.eos_token_id
    return () if token is None else (int(token),)
