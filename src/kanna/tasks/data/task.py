"""A task: rows of one kind, with a name."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import Row, read_data, read_row, rejoined, rows_of, task_kind
from kanna.tasks.records import TEXT

HARNESS = "lm_eval:"
ROWS = "rows"  # name of a task without a file


@dataclass(frozen=True)
class Task:
    """What a model is evaluated on.

    Args:
        name: As results name it.
        kind: choice, answer or text.
        rows: In the file's order.
        digest: sha256 of the file.
        templated: Whether what its rows ask is written by the model's chat template.
    """

    name: str
    kind: str
    rows: tuple[Row, ...]
    digest: str
    templated: bool = False


def load_tasks(
    files: Sequence[str | Path], limit: int | None = None, texts: Sequence[str | Path] = ()
) -> list[Task]:
    """Tasks of files; a file named twice is refused, files of one name are told apart by their folder.

    Args:
        limit: Rows of each, at most; text is taken whole.
        texts: Those of `files` to be read as plain text.

    Raises:
        InputError: Whatever is wrong with a file; see `read_rows` and `task_kind`.
    """
    paths = [Path(file) for file in files]
    resolved = [path.resolve() for path in paths]
    double = [path for path, place in zip(paths, resolved, strict=True) if resolved.count(place) > 1]
    if double:
        raise InputError(f"{double[0]} is given twice", "name every task once")
    plain = {Path(path) for path in texts}
    named = names_of(paths)
    return [_load(path, name, limit, path in plain) for path, name in zip(paths, named, strict=True)]


def task_of(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> Task:
    """A task of rows that a program holds, each as a line of JSON has it.

    Raises:
        InputError: A row that is none; its place is named.
    """
    read = [read_row(f"{ROWS}, row {number}", row) for number, row in enumerate(rows, 1)]
    kind = task_kind(read)
    kept = tuple(read if limit is None or kind == TEXT else read[:limit])
    said = json.dumps([dict(row) for row in rows], ensure_ascii=False, sort_keys=True, default=str)
    return Task(ROWS, kind, kept, hashlib.sha256(said.encode("utf-8")).hexdigest())


def joined_by(task: Task, joiner: str) -> Task:
    """The same, whose rows read as with something else between prompt and answer."""
    return replace(task, rows=rejoined(task.rows, joiner))


def names_of(paths: Sequence[Path]) -> list[str]:
    """The name of each file, with as many of its folders as tell it from the others of that name."""
    parts = [path.absolute().parts for path in paths]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        taken = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        names.append("/".join(own[-taken:]))
    return names


def _load(path: Path, name: str, limit: int | None, text: bool) -> Task:
    """Rows and digest are of the same bytes, whatever happens to the file meanwhile."""
    data = read_data(path)
    rows = rows_of(path, data)
    kind = TEXT if text else task_kind(rows)
    kept = tuple(rows if limit is None or kind == TEXT else rows[:limit])
    return Task(name, kind, kept, hashlib.sha256(data).hexdigest())
