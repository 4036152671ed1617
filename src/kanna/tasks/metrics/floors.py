"""What a task gives away: scores that need no model at all."""

from collections import Counter
from collections.abc import Sequence

from kanna.tasks.data.rows import Row


def constant_answer(rows: Sequence[Row]) -> tuple[float, str]:
    """Share of rows that the best constant answer gets right, and that answer.

    It is the answer accepted by most rows; or, where the choices differ between rows, always the one at the
    commonest place, if that is right more often.
    """
    accepted = Counter(text for row in rows for text in {answer.strip() for answer in row.accepted})
    answer, count = accepted.most_common(1)[0]
    place, placed = Counter(row.label for row in rows).most_common(1)[0]
    if len({row.choices for row in rows}) > 1 and place is not None and placed > count:
        return placed / len(rows), f"choice {place}"
    return count / len(rows), answer


def answer_in_prompt(rows: Sequence[Row]) -> float:
    """Share of rows whose prompt holds the answer already, without regard to case."""
    return sum(holds_answer(row) for row in rows) / len(rows)


def holds_answer(row: Row) -> bool:
    """Whether any accepted answer stands in the prompt."""
    prompt = row.prompt.lower()
    return any(answer.strip().lower() in prompt for answer in row.accepted)
