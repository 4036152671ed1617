"""Rows from JSON arrays, CSV and Parquet, as the objects that a JSON line would hold, each with its place."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kanna.errors import InputError

Placed = tuple[str, dict[str, Any]]
_NUMBERS = ("label", "cost")
_SEPARATORS = ",;\t|"


def array_rows(path: Path, text: str) -> Iterator[Placed]:
    """Objects of a JSON array."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{path} is no JSON: {error}", "mend it, or write one object a line (.jsonl)"
        ) from error
    for number, fields in enumerate(found, 1):
        where = f"{path}, element {number}"
        if not isinstance(fields, dict):
            raise InputError(f"{where}: expected an object, found {type(fields).__name__}", "mend it")
        yield where, fields


def csv_rows(path: Path, text: str) -> Iterator[Placed]:
    """Rows of a table with a header; the separator is the one the header holds most often.

    `choices` is a JSON list in one cell, or one cell each in columns choice_0, choice_1, ... (or choice_a,
    ...). Empty cells are left out.
    """
    header = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names = list(reader.fieldnames or [])
    if len(set(names)) < len(names):
        raise InputError(f"{path}: the header names a column twice: {names}", "rename one")
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if None in cells or None in cells.values():
                raise InputError(
                    f"{where}: the header has {len(names)} columns, the row more or fewer", "mend that row"
                )
            yield where, _fields(where, {name.strip(): cell for name, cell in cells.items()})
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}", "mend its quotes") from error


def parquet_rows(path: Path) -> Iterator[Placed]:
    """Rows of a Parquet file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            "Parquet files need pyarrow, which is not installed", "pip install 'kanna[eval]', or give .jsonl"
        ) from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is no Parquet file: {error}", "write it again, or give .jsonl") from error
    for number, fields in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", {key: value for key, value in fields.items() if value is not None}


def _fields(where: str, cells: dict[str, str]) -> dict[str, Any]:
    """Cells as the JSON values they stand for."""
    fields: dict[str, Any] = {name: cell for name, cell in cells.items() if cell.strip()}
    single = sorted(name for name in fields if name.startswith("choice_"))
    if single:
        fields["choices"] = [fields.pop(name) for name in single]
    for name in ("choices", "answers"):
        if isinstance(fields.get(name), str):
            fields[name] = _listed(where, name, fields[name])
    for name in _NUMBERS:
        if name in fields:
            fields[name] = _number(fields[name])
    return fields


def _listed(where: str, name: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        raise InputError(
            f"{where}: {name} must be a JSON list, found {cell!r}",
            f'write ["a", "b"], or columns {name[:-1]}_0, ...',
        ) from None


def _number(cell: str) -> Any:
    """A number where the cell is one; else the text, which a label may be."""
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
