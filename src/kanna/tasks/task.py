"""A task: rows of one kind, with a name."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kanna.errors import InputError
from kanna.tasks.records import TEXT
from kanna.tasks.rows import Row, read_rows, task_kind

HARNESS = "lm_eval:"


@dataclass(frozen=True)
class Task:
    """What a model is evaluated on.

    Args:
        name: As results name it.
        kind: choice, answer or text.
        rows: In the file's order.
        digest: sha256 of the file.
    """

    name: str
    kind: str
    rows: tuple[Row, ...]
    digest: str


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
    double = {path for path in paths if paths.count(path) > 1}
    if double:
        raise InputError(f"{min(double)} is given twice", "name every task once")
    names = [path.name for path in paths]
    plain = {Path(one) for one in texts}
    named = [path.name if names.count(path.name) == 1 else _longer(path) for path in paths]
    return [_load(path, name, limit, path in plain) for path, name in zip(paths, named, strict=True)]


def _longer(path: Path) -> str:
    return f"{path.absolute().parent.name}/{path.name}"


def _load(path: Path, name: str, limit: int | None, text: bool) -> Task:
    rows = read_rows(path)
    kind = TEXT if text else task_kind(rows)
    kept = tuple(rows if limit is None or kind == TEXT else rows[:limit])
    return Task(name, kind, kept, hashlib.sha256(path.read_bytes()).hexdigest())
