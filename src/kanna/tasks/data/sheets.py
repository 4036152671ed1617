"""Any table as its cells: the columns under the names they have, and each row as text with its place."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data import headers, tables
from kanna.tasks.data.encodings import UTF_8, decoded_as

EXCEL = (".xlsx", ".xlsm")
JSON_LINES = (".jsonl", ".jsonlines", ".jl", ".ndjson")
READABLE = (*JSON_LINES, ".json", ".csv", ".tsv", ".parquet", *EXCEL)


@dataclass(frozen=True)
class Sheet:
    """A table as it stands.

    Args:
        name: Of its file.
        columns: Names, in the order of the table.
        rows: Place in the file, and what each column holds there; "" for nothing.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, Mapping[str, str]], ...]


def read_sheet(path: str | Path, *, encoding: str = UTF_8, sheet: str | None = None) -> Sheet:
    """A .csv, .tsv, .xlsx, .jsonl, .json or .parquet file.

    Args:
        encoding: Of a text file.
        sheet: Name of that of a workbook; the first one by default.

    Raises:
        InputError: Missing, another kind of file, not readable in the encoding, no such sheet, a header that
            names a column twice, a row that does not fit the header, or no rows.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in READABLE:
        raise InputError(f"{path} is no table that can be read", f"give one of {', '.join(READABLE)}")
    if sheet is not None and kind not in EXCEL:
        raise InputError(f"{path} has no sheets", "leave out --sheet")
    data = _bytes(path)
    if kind in EXCEL:
        placed = _from_excel(path, data, sheet)
    elif kind == ".parquet":
        placed = _from_objects(path, tables.parquet_rows(path, data))
    else:
        text = decoded_as(path, data, encoding)
        placed = _from_text(path, text, kind)
    if not placed.rows:
        raise InputError(f"{path} has no rows", "give a table with a header and rows below it")
    return placed


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", f"give one of {', '.join(READABLE)}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "give a readable file") from error


def _from_text(path: Path, text: str, kind: str) -> Sheet:
    if kind in (".csv", ".tsv"):
        return _from_csv(path, text)
    if kind == ".json":
        return _from_objects(path, tables.array_rows(path, text))
    lines = ((f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1))
    return _from_objects(path, ((where, tables.parsed(where, line)) for where, line in lines if line.strip()))


def _from_csv(path: Path, text: str) -> Sheet:
    names, rows = tables.cells_of(path, text)
    kept = []
    for where, cells in rows:
        if isinstance(cells, InputError):
            raise cells
        kept.append((where, cells))
    return _of_cells(path, names, kept)


def _of_cells(path: Path, names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Sheet:
    headers.check_names(path, names)
    fitted = [(where, headers.fitted(where, names, cells)) for where, cells in rows]
    named = [place for place, name in enumerate(names) if name]
    cells = tuple((where, {names[place]: row[place] for place in named}) for where, row in fitted)
    return Sheet(path.name, tuple(names[place] for place in named), cells)


def _from_objects(path: Path, placed: Iterator[tables.Placed]) -> Sheet:
    """Objects of JSON or Parquet: what they hold that is no text is written as JSON."""
    rows: list[tuple[str, dict[str, str]]] = []
    for where, fields in placed:
        if isinstance(fields, InputError):
            raise fields
        rows.append((where, {name: written(value) for name, value in fields.items()}))
    columns = tuple(dict.fromkeys(name for _, fields in rows for name in fields))
    blank = dict.fromkeys(columns, "")
    return Sheet(path.name, columns, tuple((where, {**blank, **fields}) for where, fields in rows))


def _from_excel(path: Path, data: bytes, sheet: str | None) -> Sheet:
    book = _workbook(path, data)
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise InputError(
                f"{path} has no sheet {sheet!r}", f"its sheets: {', '.join(map(repr, book.sheetnames))}"
            )
        page = book[sheet or book.sheetnames[0]]
        lines = [[written(cell) for cell in line] for line in page.iter_rows(values_only=True)]
    finally:
        book.close()
    filled = [(number, line) for number, line in enumerate(lines, 1) if any(cell.strip() for cell in line)]
    if not filled:
        return Sheet(path.name, (), ())
    (_, header), *rows = filled
    names = [name.strip() for name in header]
    return _of_cells(path, names, [(f"{path}, row {number}", line) for number, line in rows])


def _workbook(path: Path, data: bytes) -> Any:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise InputError(
            "Excel files need openpyxl, which is not installed",
            "pip install 'kanna[excel]', or save the sheet as CSV UTF-8",
        ) from error
    try:
        return load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    except Exception as error:  # openpyxl lets through whatever zipfile and its XML reader raise
        raise InputError(f"{path} is no Excel workbook: {error}", "save it again, or as CSV UTF-8") from error


def written(value: object) -> str:
    """A cell as text: whole numbers without a point, dates as ISO 8601, lists as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | dict):
        return tables.as_json(value)
    return str(value)
