"""Questions that two files have in common, in whatever kind of row they stand."""

from collections.abc import Sequence

from kanna.tasks.data.rows import Row
from kanna.tasks.data.spoken import ASSISTANT, as_text
from kanna.tasks.data.units import plain


def shared(rows: Sequence[Row], asked: Sequence[Row]) -> list[tuple[int, Row]]:
    """Rows of `asked` whose question `rows` answer, each with the number of the first that does, from 1."""
    known: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        for question in _answered(row):
            known.setdefault(question, number)
    numbers = [min((known[one] for one in _asked(row) if one in known), default=0) for row in asked]
    return [(number, row) for number, row in zip(numbers, asked, strict=True) if number]


def _answered(row: Row) -> set[str]:
    """What a model that learns the row is shown the answer to: each turn of a conversation answers one."""
    if not row.messages:
        return _asked(row)
    turns = [place for place, message in enumerate(row.messages) if message.role == ASSISTANT]
    return {_before(row, place) for place in turns}


def _asked(row: Row) -> set[str]:
    """What the row asks, laid out and as a user would say it."""
    if row.messages:
        return {_before(row, len(row.messages) - 1)}
    return {_typed(text) for text in (row.prompt or row.text, row.said) if text}


def _before(row: Row, place: int) -> str:
    """What was said before a message; how the assistant was told to be is no part of the question."""
    before = row.messages[:place]
    return _typed(as_text([message for message in before if message.role != "system"] or before))


def _typed(text: str) -> str:
    """A text, however it was typed."""
    return " ".join(plain(text).split())
