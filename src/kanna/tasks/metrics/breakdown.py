"""A task's score for rows of one kind at a time, such as rare and frequent facts."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import Row
from kanna.tasks.records import Record, TaskScore


def breakdown(score: TaskScore, rows: Sequence[Row], key: str) -> dict[str, dict[str, Any]]:
    """Value of the rows' `key` -> rows and mean of the headline metric; in the order of the values.

    Raises:
        InputError: No row has the key; says which keys there are.
    """
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record, row in zip(score.records, rows, strict=True):
        if key in row.extra:
            groups[row.extra[key]].append(record)
    check_key(score.task, rows, key)
    return {
        str(value): {
            "rows": len(records),
            "value": sum(record.values[score.metric] for record in records) / len(records),
        }
        for value, records in sorted(groups.items(), key=lambda item: (str(type(item[0])), item[0]))
    }


def check_key(task: str, rows: Sequence[Row], key: str) -> None:
    """Raise InputError unless some row of the task has the key; says which keys there are."""
    if not any(key in row.extra for row in rows):
        known = ", ".join(sorted({name for row in rows for name in row.extra})) or "none"
        raise InputError(f"no row of {task} has the key {key!r}", f"keys of its rows: {known}")
