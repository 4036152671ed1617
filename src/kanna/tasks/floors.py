"""What a task gives away: scores that need no model at all."""

from collections import Counter
from collections.abc import Sequence

from kanna.tasks.rows import Row


def constant_answer(rows: Sequence[Row]) -> tuple[float, str]:
    """Share of rows that the best constant answer gets right, and that answer.

    Where all rows have the same choices it is the commonest right choice; where they differ, the commonest
    place of the right one.
    """
    if rows[0].choices and len({row.choices for row in rows}) > 1:
        place, count = Counter(row.label for row in rows).most_common(1)[0]
        return count / len(rows), f"choice {place}"
    answer, count = Counter(row.answer.strip() for row in rows).most_common(1)[0]
    return count / len(rows), answer


def answer_in_prompt(rows: Sequence[Row]) -> float:
    """Share of rows whose prompt holds the answer already, without regard to case."""
    return sum(holds_answer(row) for row in rows) / len(rows)


def holds_answer(row: Row) -> bool:
    """Whether any accepted answer stands in the prompt."""
    prompt = row.prompt.lower()
    return any(answer.strip().lower() in prompt for answer in row.answers or (row.answer,))
