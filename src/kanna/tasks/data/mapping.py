"""A task out of any table: which column is asked, and which one holds what is right."""

from __future__ import annotations

import random
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data import tables
from kanna.tasks.data.encodings import UTF_8
from kanna.tasks.data.sheets import Sheet, read_sheet, written
from kanna.tasks.data.units import plain

# Columns of which at least one asks something; a table without any has names of its own.
ASKING = frozenset({"prompt", "text", "instruction", "messages", "query"})
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_MOST_CHOICES = 100
_SHOWN, _SAMPLE = 8, 3
_LABELS = re.compile(r"label|categor|class|type|intent|topic|sentiment|target|answer|expected|output", re.I)


@dataclass(frozen=True)
class Columns:
    """How rows of a table are asked.

    Args:
        prompt: A template; `{Name}` stands for what the column Name holds, `{{` for a brace.
        label: Column of the right choice.
        answer: Column of the right answer, where there is nothing to choose from.
        choices: To choose from; by default the values that the column of labels has.
        group: Column of a name that rows of one fact share.
    """

    prompt: str
    label: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class Made:
    """Rows of a task.

    Args:
        rows: As JSON lines have them.
        choices: To choose from; empty for answers.
        left_out: Places of rows that ask nothing, or have no right answer.
        notes: What the user should look at.
    """

    rows: tuple[dict[str, Any], ...]
    choices: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def sample(self, seed: int = 0) -> tuple[dict[str, Any], ...]:
        """A few rows drawn at random, in their order."""
        places = sorted(random.Random(seed).sample(range(len(self.rows)), min(_SAMPLE, len(self.rows))))
        return tuple(self.rows[place] for place in places)


def rows_from(
    source: str | Path, columns: Columns, *, encoding: str = UTF_8, sheet: str | None = None
) -> Made:
    """The rows of a task that a table holds.

    Raises:
        InputError: The table cannot be read, has no such column, or its labels are no choices.
    """
    return mapped(read_sheet(source, encoding=encoding, sheet=sheet), columns)


def mapped(sheet: Sheet, columns: Columns) -> Made:
    """The same of a table that has been read."""
    asked = _names(columns.prompt)
    if not asked:
        raise InputError(
            f"the prompt {columns.prompt!r} names no column",
            f"write one in braces, such as {{{sheet.columns[0]}}}; columns: {_listed(sheet.columns)}",
        )
    fields = {name: _column(sheet, name) for name in asked}
    if (columns.label is None) == (columns.answer is None):
        raise InputError(
            "what is right must be said in one way",
            "give --label COLUMN (of some choices) or --answer COLUMN",
        )
    if columns.choices and columns.label is None:
        raise InputError("choices without a column of labels", "give --label COLUMN")
    right = _column(sheet, columns.label or columns.answer or "")
    group = None if columns.group is None else _column(sheet, columns.group)
    whole = [
        (where, row) for where, row in sheet.rows
        if row[right].strip() and any(row[name].strip() for name in fields.values())
    ]  # fmt: skip
    if not whole:
        raise InputError(f"no row of {sheet.name} has both a prompt and {right}", "choose other columns")
    choices, notes = ((), ()) if columns.label is None else _choices(whole, right, columns.choices)
    rows = tuple(_row(row, columns.prompt, fields, right, choices, group) for _, row in whole)
    kept = {where for where, _ in whole}
    return Made(rows, choices, tuple(where for where, _ in sheet.rows if where not in kept), notes)


def refuse_unmapped(path: Path, placed: Sequence[tables.Placed]) -> None:
    """Raise InputError for a table that asks nothing under the names that kanna knows.

    What its columns are is said once, with the command that makes a task of it.
    """
    objects = [(where, fields) for where, fields in placed if isinstance(fields, dict)]
    columns = tuple(dict.fromkeys(name for _, fields in objects for name in fields))
    if not columns or ASKING & set(columns):
        return
    blank = dict.fromkeys(columns, "")
    rows = tuple(
        (where, {**blank, **{name: written(value) for name, value in fields.items()}})
        for where, fields in objects
    )
    sheet = Sheet(path.name, columns, rows)
    raise InputError(
        f"{path} has the columns {_listed(columns)}, and none of {_listed(sorted(ASKING))}",
        f"call a column of plain text text, or make a task of it: {suggested(path, sheet)}"
        if len(columns) > 1
        else "call a column of plain text text, or add a column of what is right",
    )


def suggested(path: Path, sheet: Sheet) -> str:
    """A command that makes a task of a table of at least two columns, by what these look like."""
    values = {name: [row[name].strip() for _, row in sheet.rows] for name in sheet.columns}
    longest = max(sheet.columns, key=lambda name: sum(map(len, values[name])))
    others = [name for name in sheet.columns if name != longest]
    right = next((name for name in others if _LABELS.search(name)), None)
    repeated = [name for name in others if 1 < len(set(values[name])) <= max(2, len(sheet.rows) // 2)]
    chosen = right or (repeated or others)[0]
    option = "--label" if chosen in repeated else "--answer"
    words = ["kanna", "task", "new", "app.jsonl", "--from", str(path), "--prompt", f"{{{longest}}}"]
    return shlex.join([*words, option, chosen])


def _row(
    row: Mapping[str, str],
    template: str,
    fields: Mapping[str, str],
    right: str,
    choices: tuple[str, ...],
    group: str | None,
) -> dict[str, Any]:
    prompt = _filled(template, {name: row[column].strip() for name, column in fields.items()})
    said = row[right].strip()
    made: dict[str, Any] = {"prompt": prompt, "answer": said}
    if choices:
        (label,) = (choice for choice in choices if plain(choice) == plain(said))
        made = {"prompt": prompt, "choices": list(choices), "label": label}
    named = "" if group is None else row[group].strip()
    return {**made, **({"group": named} if named else {})}


def _names(template: str) -> list[str]:
    """The columns that a template names."""
    return list(dict.fromkeys(field[1] for field in _FIELD.finditer(template) if field[1] is not None))


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda field: field[0][0] if field[1] is None else values[field[1]], template)


def _column(sheet: Sheet, name: str) -> str:
    """A column by its name, whatever the capitals where that is plain.

    Raises:
        InputError: There is none; says which there are.
    """
    if name in sheet.columns:
        return name
    alike = [column for column in sheet.columns if column.casefold() == name.strip().casefold()]
    if len(alike) == 1:
        return alike[0]
    raise InputError(f"{sheet.name} has no column {name!r}", f"its columns: {_listed(sheet.columns)}")


def _choices(
    whole: Sequence[tuple[str, Mapping[str, str]]], right: str, given: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What there is to choose from, and what to look at."""
    seen = Counter(plain(row[right].strip()) for _, row in whole)
    if given:
        known = {plain(choice) for choice in given}
        where, strange = next(((at, row[right].strip()) for at, row in whole
                               if plain(row[right].strip()) not in known), ("", ""))  # fmt: skip
        if strange:
            raise InputError(f"{where}: {right} is {strange!r}, which is no choice", f"of {_listed(given)}")
        if len(known) < max(2, len(given)):
            raise InputError(
                f"the choices {_listed(given)} are fewer than two, or one stands twice", "mend them"
            )
        return tuple(given), tuple(_unused(given, seen))
    if len(seen) < 2:
        raise InputError(
            f"{right} is {next(iter(seen))!r} in every row: there is nothing to choose",
            "name the others: --choices 'a;b;c'",
        )
    if len(seen) > _MOST_CHOICES or 2 * len(seen) > len(whole) + 2:
        raise InputError(
            f"{right} has {len(seen):,} values in {len(whole):,} rows, too many to choose from",
            f"give --answer {shlex.quote(right)} in place of --label, or name the choices: --choices 'a;b;c'",
        )
    ordered = tuple(sorted(seen, key=lambda value: (value.casefold(), value)))
    return ordered, tuple(_alike(ordered))


def _unused(given: Sequence[str], seen: Mapping[str, int]) -> Iterable[str]:
    unused = [choice for choice in given if plain(choice) not in seen]
    if unused:
        yield f"no row is labelled {_listed(unused)}"


def _alike(choices: Sequence[str]) -> Iterable[str]:
    for first, second in pairwise(choices):
        if first.casefold() == second.casefold():
            yield f"the choices {first!r} and {second!r} differ by capitals alone: are they one?"


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(map(repr, shown[:_SHOWN])) + more
