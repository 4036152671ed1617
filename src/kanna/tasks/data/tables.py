"""Rows from JSON, CSV and Parquet, as the objects that a JSON line would hold, each with its place.

A row that is none comes as the InputError that says why, so that the others can still be looked at.
"""

import csv
import io
import json
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data import headers

Placed = tuple[str, dict[str, Any] | InputError]
INSTRUCTION_SHAPE = '{"instruction": ..., "input": ..., "output": ...}'
MESSAGES_SHAPE = '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
SHAPES = (
    '{"text": ...}, {"prompt": ..., "answer": ...}, {"prompt": ..., "choices": [...], "label": N}, '
    '{"instruction": ..., "output": ...} or {"messages": [...]}'
)
EMBEDDED_SHAPES = (
    '{"text": ..., "pair": ..., "score": N} or {"query": ..., "positive": ..., "negatives": [...]}'
)
KEYS = ("text", "prompt", "answer", "answers", "choices", "label", "group", "cost")
INSTRUCTION_KEYS = ("instruction", "input", "output")
EMBEDDED_KEYS = ("pair", "score", "query", "positive", "negatives")
_CHOICE = "choice_"
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
# Of one cell; the csv module stops at 131,072, which a document may exceed.
_LONGEST_CELL = 2**31 - 1


class _NamedTwice(ValueError):
    """A key of a JSON object stands there twice; readers take the last value without a word."""


_ONE_VALUE = "keep the value that is meant, and remove the other"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NamedTwice(f"the key {twice!r} stands twice in one object")
    return fields


def parsed(where: str, line: str) -> dict[str, Any] | InputError:
    """The object of one JSON line."""
    try:
        fields = json.loads(line, object_pairs_hook=_once)
    except _NamedTwice as error:
        return InputError(f"{where}: {error}", _ONE_VALUE)
    except (ValueError, RecursionError) as error:
        return InputError(f"{where}: not JSON ({error})", f"each line must be one of {SHAPES}")
    return _object(where, fields)


def array_rows(path: Path, text: str) -> Iterator[Placed]:
    """Objects of a JSON array.

    Raises:
        InputError: It is no JSON.
    """
    try:
        elements = json.loads(text, object_pairs_hook=_once)
    except _NamedTwice as error:
        raise InputError(f"{path}, {_place_of_twice(text)}: {error}", _ONE_VALUE) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON: {error}", "mend it, or write one object a line (.jsonl)"
        ) from error
    places = (f"{path}, element {number}" for number in range(1, len(elements) + 1))
    return ((where, _object(where, fields)) for where, fields in zip(places, elements, strict=True))


def _place_of_twice(text: str) -> str:
    """Line of the element of a JSON array in which a key stands twice."""
    decoder, at = json.JSONDecoder(object_pairs_hook=_once), text.index("[") + 1
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(" \t\n\r,"))
        try:
            _, at = decoder.raw_decode(text, at)
        except _NamedTwice:
            return f"in the element of line {text.count(chr(10), 0, at) + 1}"


def csv_rows(path: Path, text: str) -> Iterator[Placed]:
    """Rows of a table with a header; the separator is the one the header holds most often outside of quotes,
    or what a line before it says (sep=;).

    `choices` is a JSON list in one cell, or one cell each in columns choice_0, choice_1, ... (or choice_a,
    choice_b, ...). Empty cells and empty rows are left out. A place is the line a row begins on.

    Raises:
        InputError: The header is none.
    """
    header, rows = cells_of(path, text)
    names = _columns(header)
    headers.check_names(path, names)
    _check_choices(path, names)
    return (
        (where, cells if isinstance(cells, InputError) else _fields(where, names, cells))
        for where, cells in rows
    )


def cells_of(path: Path, text: str) -> tuple[list[str], Iterator[tuple[str, list[str] | InputError]]]:
    """Names of the columns, and the cells of each row that is not blank, with its place.

    Raises:
        InputError: The header is none.
    """
    csv.field_size_limit(_LONGEST_CELL)
    declared = headers.declared_separator(text)
    separator = declared or headers.separator_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1 + len(text) - len(text.lstrip("\n")) + (declared is not None)
    try:
        header = [next(reader, []) for _ in range(line)][-1]
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}", "mend the quotes of the header") from error
    return [name.strip() for name in header], _rows_of_cells(path, reader, separator)


def _rows_of_cells(path: Path, reader: Any, separator: str) -> Iterator[tuple[str, list[str] | InputError]]:
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, InputError(f"{where}: {error}", "mend its quotes: text that holds one is quoted")
            return
        if any(cell.strip() for cell in cells):
            yield where, _not_swallowed(where, separator, cells)


def _not_swallowed(where: str, separator: str, cells: list[str]) -> list[str] | InputError:
    try:
        headers.refuse_swallowed(where, separator, cells)
    except InputError as error:
        return error
    return cells


def parquet_rows(path: Path, data: bytes) -> Iterator[Placed]:
    """Rows of the Parquet file `path`, which holds `data`.

    Raises:
        InputError: It is none, or there is nothing to read it with.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            "Parquet files need pyarrow, which is not installed", "pip install 'kanna[eval]', or give .jsonl"
        ) from error
    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is no Parquet file: {error}", "write it again, or give .jsonl") from error
    return ((f"{path}, row {number}", fields) for number, fields in enumerate(rows, 1))


def _object(where: str, fields: Any) -> dict[str, Any] | InputError:
    if isinstance(fields, dict):
        return fields
    return InputError(f"{where}: expected an object, found {type(fields).__name__}", f"use {SHAPES}")


def as_json(value: object) -> str:
    """A value in one line, every character as it is."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _columns(plain: Sequence[str]) -> list[str]:
    """Headers of spreadsheets are often written with a capital."""
    known = {*KEYS, *EMBEDDED_KEYS, "messages"}
    if {"instruction", "output"} <= {name.lower() for name in plain}:
        known |= set(INSTRUCTION_KEYS)  # elsewhere a column that is called Input is the user's own
    return [
        name.lower() if name.lower() in known or name.lower().startswith(_CHOICE) else name for name in plain
    ]


def _check_choices(path: Path, names: Sequence[str]) -> None:
    """Columns choice_1, choice_2, ... would put every label, which counts from 0, one choice too far."""
    endings = [name.removeprefix(_CHOICE) for name in names if name.startswith(_CHOICE)]
    numbers = [str(i) for i in range(len(endings))]
    if set(endings) not in (set(numbers), set(string.ascii_lowercase[: len(endings)])):
        shown = ", ".join(_CHOICE + name for name in endings)
        raise InputError(
            f"{path}: the columns of choices are {shown}",
            f"name them {_CHOICE}0, {_CHOICE}1, ... without a gap; labels count from 0",
        )


def _fields(where: str, names: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | InputError:
    """Cells as the JSON values they stand for."""
    try:
        cells = headers.fitted(where, names, cells)
        fields: dict[str, Any] = {
            name: cell for name, cell in zip(names, cells, strict=True) if name and cell.strip()
        }
        _join_choices(where, names, fields)
        for name in ("choices", "answers", "negatives", "messages"):
            cell = fields.get(name)
            if isinstance(cell, str) and (name != "messages" or cell.lstrip().startswith("[")):
                fields[name] = _listed(where, name, cell)
        for name in ("cost", "score"):
            if name in fields:
                fields[name] = _number(fields[name])
        if "label" in fields:
            fields["label"] = _label(where, fields["label"], fields.get("choices"))
    except InputError as error:
        return error
    return fields


def _join_choices(where: str, names: Sequence[str], fields: dict[str, Any]) -> None:
    """Columns choice_0, ... become `choices`; a row may have fewer of them than the header, at the end."""
    columns = sorted((name for name in names if name.startswith(_CHOICE)), key=lambda name: (len(name), name))
    filled = [name in fields for name in columns]
    if not any(filled):
        return
    if sorted(filled, reverse=True) != filled:
        gap = columns[filled.index(False)]
        raise InputError(f"{where}: {gap} is empty and a later choice is not", "fill choices from the left")
    if "choices" in fields:
        raise InputError(f"{where}: choices, and {columns[0]} too", "write them in one way")
    fields["choices"] = [fields.pop(name) for name in columns if name in fields]


def _listed(where: str, name: str, cell: str) -> Any:
    example = '[{"role": ..., "content": ...}]' if name == "messages" else '["a", "b"]'
    columns = f", or columns {_CHOICE}0, {_CHOICE}1, ..." if name == "choices" else ""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise InputError(
            f"{where}: {name} must be a JSON list, found {cell!r}", f"write {example}{columns}"
        ) from None


def _label(where: str, cell: str, choices: Any) -> Any:
    """A place, or the text of a choice; where choices are numbers themselves, it must not be both."""
    texts = (
        [choice.strip() for choice in choices if isinstance(choice, str)] if isinstance(choices, list) else []
    )
    number = _number(cell)
    if cell.strip() not in texts:
        return number
    if isinstance(number, int) and 0 <= number < len(texts) and texts[number] != cell.strip():
        raise InputError(
            f"{where}: label {cell.strip()} could be the choice {cell.strip()!r} or the one at that place, "
            f"{texts[number]!r}",
            'a .csv cannot tell: write .jsonl, with "label": "3" for the text or 3 for the place',
        )
    return cell


def _number(cell: str) -> Any:
    """A number where the cell is one; else the text, which a label may be."""
    if _NUMBER.fullmatch(cell) is None:
        return cell
    value = float(cell)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
