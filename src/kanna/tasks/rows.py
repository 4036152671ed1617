"""The user's data: rows of a JSON Lines file, or a plain text file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.errors import InputError

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
    """

    text: str
    prompt: str = ""
    answer: str = ""
    group: str = ""
    choices: tuple[str, ...] = ()
    label: int | None = None
    answers: tuple[str, ...] = ()
    cost: float = 1.0


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a `.jsonl` file, or a plain text file as one row.

    Raises:
        InputError: Missing, empty or not UTF-8; a line that is no row (its number is given).
    """
    path = Path(path)
    text = _read_text(path)
    if path.suffix not in (".jsonl", ".json"):
        return [Row(text)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_row(f"{path}, line {number}", line) for number, line in lines]


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


def _row(where: str, line: str) -> Row:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})", f"each line must be one of {SHAPES}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: expected an object, found {type(fields).__name__}", f"use {SHAPES}")
    group = str(fields.get("group", ""))
    if isinstance(fields.get("text"), str):
        return Row(fields["text"], group=group)
    answer = _answer(where, fields)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or answer is None:
        raise InputError(f"{where}: expected {SHAPES}, found the keys {sorted(fields)}", "mend that line")
    return Row(_join(prompt, answer), prompt, answer, group)


def _answer(where: str, fields: dict[str, Any]) -> str | None:
    if isinstance(fields.get("answer"), str):
        return str(fields["answer"])
    choices, label = fields.get("choices"), fields.get("label")
    if not isinstance(choices, list) or not isinstance(label, int) or isinstance(label, bool):
        return None
    if not 0 <= label < len(choices):
        raise InputError(f"{where}: label {label} of {len(choices)} choices", "labels count from 0")
    return str(choices[label])


def _join(prompt: str, answer: str) -> str:
    """Prompt and answer as one text, with one space between them unless one is there."""
    return prompt + answer if prompt[-1:].isspace() or answer[:1].isspace() else f"{prompt} {answer}"
