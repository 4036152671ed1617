"""The user's data: rows of a JSON Lines file, or a plain text file."""

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks import tables

SHAPES = '{"text": ...}, {"prompt": ..., "answer": ...} or {"prompt": ..., "choices": [...], "label": N}'


@dataclass(frozen=True)
class Row:
    """One example.

    Args:
        text: What a model would have read and written: the text, or the prompt with its right answer.
        prompt: What it reads; empty for plain text.
        answer: What it should write; empty for plain text.
        group: Name shared by rows that ask for the same fact.
        choices: What to choose from; empty for other rows.
        label: Index of the right choice; None for other rows.
        answers: Every answer that counts as right, `answer` first; empty where there is only the one.
        cost: What one wrong answer to this row costs; 1 unless the row says so.
        extra: The row's other keys, as they were.
    """

    text: str
    prompt: str = ""
    answer: str = ""
    group: str = ""
    choices: tuple[str, ...] = ()
    label: int | None = None
    answers: tuple[str, ...] = ()
    cost: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)


TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
TEXTS = (".txt", ".md", "")


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file, or a plain text file as one row.

    Raises:
        InputError: Missing, empty or not UTF-8; a line that is no row (its number is given).
    """
    path = Path(path)
    if path.suffix.lower() not in TABLES:
        return [Row(_read_text(path))]
    rows = [read_row(where, fields) for where, fields in read_fields(path)]
    if not rows:
        raise InputError(f"{path} has no rows", f"give lines such as {SHAPES}")
    return rows


def read_fields(path: Path) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Place and fields of each row of a table, unchecked; a line that is no object raises InputError."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        if not path.is_file():
            raise InputError(f"{path} does not exist", "give a readable file")
        yield from tables.parquet_rows(path)
        return
    text = _read_text(path)
    if suffix in (".csv", ".tsv"):
        yield from tables.csv_rows(path, text)
    elif suffix == ".json" and text.lstrip().startswith("["):
        yield from tables.array_rows(path, text)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _object(where, line)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", "give a .jsonl or a plain text file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "give a readable file") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.start} cannot be decoded", "convert it: iconv -t UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path} is empty", f"give lines such as {SHAPES}, or plain text")
    return text


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})", f"each line must be one of {SHAPES}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: expected an object, found {type(fields).__name__}", f"use {SHAPES}")
    return fields


def read_row(where: str, fields: Mapping[str, Any]) -> Row:
    """A row of what a line holds.

    Raises:
        InputError: It is none; `where` and what was expected are named.
    """
    group, cost = str(fields.get("group", "")), _cost(where, fields)
    extra = {key: value for key, value in fields.items() if key not in _KEYS}
    if isinstance(fields.get("text"), str):
        return Row(fields["text"], group=group, cost=cost, extra=extra)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not ({"answer", "answers", "choices"} & fields.keys()):
        raise InputError(f"{where}: expected {SHAPES}, found the keys {sorted(fields)}", "mend that line")
    _filled(where, "prompt", prompt)
    if "choices" in fields:
        choices, label = _choices(where, fields)
        right = choices[label]
        return Row(joined(prompt, right), prompt, right, group, choices, label, (), cost, extra)
    answers = _answers(where, fields)
    several = answers if len(answers) > 1 else ()
    return Row(joined(prompt, answers[0]), prompt, answers[0], group, (), None, several, cost, extra)


_KEYS = ("text", "prompt", "answer", "answers", "choices", "label", "group", "cost")


def _filled(where: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} must be a text, found {value!r}", f"use {SHAPES}")
    if not value.strip():
        raise InputError(f"{where}: {key} is empty", "fill it in, or remove the row")
    return value


def _cost(where: str, fields: Mapping[str, Any]) -> float:
    cost = fields.get("cost", 1.0)
    number = isinstance(cost, int | float) and not isinstance(cost, bool)
    if not number or not math.isfinite(cost) or cost < 0:
        raise InputError(f"{where}: cost {cost!r} is no number of at least 0", "mend that line")
    return float(cost)


def _answers(where: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """All accepted answers, the first one first."""
    given = fields.get("answers", [])
    if not isinstance(given, list):
        raise InputError(f"{where}: answers must be a list, found {given!r}", "write one answer as answer")
    first = [fields["answer"]] if "answer" in fields else []
    found = [_filled(where, "an answer", one) for one in (*first, *given)]
    if not found:
        raise InputError(f"{where}: there is no answer", f"use {SHAPES}")
    return tuple(dict.fromkeys(found))


def _choices(where: str, fields: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Choices, and the index of the right one; a label may also be its text."""
    choices, label = fields["choices"], fields.get("label")
    if not isinstance(choices, list) or len(choices) < 2:
        raise InputError(f"{where}: choices must be a list of at least 2, found {choices!r}", f"use {SHAPES}")
    found = tuple(_filled(where, "a choice", one) for one in choices)
    if len(set(found)) < len(found):
        raise InputError(f"{where}: the choices {choices!r} hold one twice", "remove it")
    if isinstance(label, str) and found.count(label) == 1:
        return found, found.index(label)
    if not isinstance(label, int) or isinstance(label, bool):
        raise InputError(
            f"{where}: label {label!r} is neither a number nor one of the choices", "labels count from 0"
        )
    if not 0 <= label < len(found):
        raise InputError(f"{where}: label {label} of {len(found)} choices", "labels count from 0")
    return found, label


def task_kind(rows: Sequence[Row]) -> str:
    """choice, answer or text: what the rows of a task are.

    Raises:
        InputError: No row, or rows of several kinds.
    """
    if not rows:
        raise InputError("the task has no rows", f"give lines such as {SHAPES}")
    kinds = [_kind(row) for row in rows]
    other = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        raise InputError(
            f"row 1 of the task is of kind {kinds[0]} and row {other + 1} of kind {kinds[other]}",
            "make a task of each kind",
        )
    return kinds[0]


def _kind(row: Row) -> str:
    if row.choices:
        return "choice"
    return "answer" if row.prompt else "text"


def joined(prompt: str, answer: str) -> str:
    """Prompt and answer as one text, with one space between them unless one is there."""
    return prompt + answer if prompt[-1:].isspace() or answer[:1].isspace() else f"{prompt} {answer}"
