"""The first lines of a table of text: how its columns are parted, and what they are called."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

from kanna.errors import InputError

SEPARATORS = ",;\t|"
# A name in quotes may hold separators and line ends.
_HEADER = re.compile(r'(?:"(?:[^"]|"")*"|[^"\n])*')
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
# Spreadsheets are told the separator so; it is no row of the table.
_DECLARED = re.compile(r'"?sep=([^\w\s"]|\t)"?(?:[ ]|\1)*(?:\n|$)', re.IGNORECASE)
_LOOKED_AT = 20
_ASKED = ("prompt", "text", "instruction")
_CHOSEN = {"choices", "choice_0", "choice_a", "label"}
_EXPECTED = {"answer", "answers", *_CHOSEN, "pair", "score", "group", "output"}


def declared_separator(text: str) -> str | None:
    """That of a first line such as sep=; or None where there is none."""
    found = _DECLARED.match(text.lstrip("\n"))
    return None if found is None else found[1]


def separator_of(text: str) -> str:
    """The one that the header holds most often outside of quotes."""
    text = text.lstrip("\n")
    found = _HEADER.match(text)
    header = _QUOTED.sub("", found[0] if found and found[0] else text.split("\n", 1)[0])
    return max(SEPARATORS, key=header.count)


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise InputError for a name that two columns have; those without one are no columns."""
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        raise InputError(f"{path}: the header names a column twice: {named}", "rename one")


def fitted(where: str, names: Sequence[str], cells: Sequence[str]) -> list[str]:
    """The cells of a row, one for each name; blank ones beyond the last name hold nothing.

    Raises:
        InputError: There are more cells or fewer, or text stands under no name. An index, which some programs
            write before the first column without a name, is left out.
    """
    last = max((place for place, name in enumerate(names, 1) if name), default=0)
    if len(cells) < last or any(cell.strip() for cell in cells[len(names) :]):
        raise InputError(
            f"{where}: the header has {len(names)} columns, this row {len(cells)}",
            "mend that row: text that holds the separator must stand in quotes",
        )
    beyond = next(
        (i for i, cell in enumerate(cells[: len(names)]) if i and not names[i] and cell.strip()), None
    )
    if beyond is not None:
        raise InputError(
            f"{where}: {cells[beyond]!r} stands in column {beyond + 1}, which has no name",
            "name it in the header; text that holds the separator must stand in quotes",
        )
    return [*cells[: len(names)], *[""] * (len(names) - len(cells))]


def refuse_swallowed(where: str, separator: str, cells: Sequence[str]) -> None:
    """Raise InputError where a quoted cell may be several rows, as in tables by tabs, mostly without quotes.

    A quotation mark at the beginning of a cell would take in all up to the same column of a later row: for
    each line end as many tabs as there are between columns.
    """
    for cell in cells if separator == "\t" else ():
        lines = cell.count("\n")
        if lines and cell.count("\t") == lines * (len(cells) - 1):
            raise InputError(
                f"{where}: a quotation mark makes one cell of {lines + 1} lines: {cell[:60]!r}",
                "if they are rows, double the mark and quote the cell; if they are one text, write .jsonl",
            )


def refuse_table(path: Path, text: str) -> None:
    """Raise InputError where a file that is named as plain text holds rows of a table."""
    lines = [line for line in text.split("\n") if line.strip()][:_LOOKED_AT]
    if sum(map(_is_object, lines)) > len(lines) / 2 or _is_array(text):
        wanted = ".jsonl"
    elif len(lines) > 1 and _is_header(lines[0]):
        wanted = ".tsv" if separator_of(text) == "\t" else ".csv"
    else:
        return
    raise InputError(
        f"{path} holds the rows of a table, and its name says that it is plain text",
        f"rename it to {path.stem}{wanted}",
    )


def _is_object(text: str) -> bool:
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_array(text: str) -> bool:
    try:
        elements = json.loads(text) if re.match(r"\s*\[\s*\{", text) else []
    except (ValueError, RecursionError):
        return False
    return bool(elements) and all(isinstance(element, dict) for element in elements)


def _is_header(line: str) -> bool:
    """Whether it names what a row asks, and what is expected."""
    try:
        names = [name.strip().lower() for name in next(csv.reader([line], delimiter=separator_of(line)))]
    except csv.Error:
        return False
    return any(name in names for name in _ASKED) and bool(_EXPECTED & set(names))
