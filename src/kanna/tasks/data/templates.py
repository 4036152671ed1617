"""Small task files to begin with; what a key means stands in `note`, which no score depends on."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from kanna.checkpoint.whole import write_whole
from kanna.errors import InputError
from kanna.tasks.data.sheets import JSON_LINES
from kanna.tasks.data.tables import as_json

_EXAMPLES = files("kanna.tasks.data") / "examples"
TEMPLATES: dict[str, list[dict[str, Any]]] = {
    kind: [json.loads(line) for line in (_EXAMPLES / f"{kind}.jsonl").read_text("utf-8").splitlines()]
    for kind in (
        "choice",
        "answer",
        "paraphrases",
        "instruction",
        "messages",
        "text",
        "similarity",
        "retrieval",
    )
}


def new_task(path: str | Path, kind: str = "choice", force: bool = False) -> Path:
    """Write a template; .csv where the name says so, else JSON lines.

    Raises:
        InputError: An unknown kind or suffix, or the file exists.
    """
    path = Path(path)
    if kind not in TEMPLATES:
        raise InputError(f"unknown kind {kind!r}", f"known: {', '.join(TEMPLATES)}")
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise InputError(f"a template cannot be written as {path.name}", "name it .jsonl or .csv")
    check_new(path, force)
    rows = TEMPLATES[kind]
    table = path.suffix.lower() == ".csv"
    text = _csv(rows) if table else "".join(json.dumps(row) + "\n" for row in rows)
    _write(path, text, force)
    return path


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]], force: bool = False) -> Path:
    """Write rows as JSON lines.

    Raises:
        InputError: The name is not one of JSON lines, or the file exists.
    """
    path = Path(path)
    if path.suffix.lower() not in JSON_LINES:
        raise InputError(f"rows of a task cannot be written as {path.name}", "name it .jsonl")
    check_new(path, force)
    _write(path, "".join(as_json(row) + "\n" for row in rows), force)
    return path


def check_new(path: Path, force: bool) -> None:
    """Raise InputError where something is in the way of a new file."""
    if path.is_dir():
        raise InputError(f"{path} is a directory", "choose another name")
    if os.path.lexists(path) and not force:
        raise _exists(path)


def _write(path: Path, text: str, force: bool) -> None:
    try:
        write_whole({path: text.encode("utf-8")}, replace=force)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", "choose another place") from error


def _exists(path: Path) -> InputError:
    return InputError(f"{path} exists already", "choose another name, or add --force")


def _csv(rows: list[dict[str, Any]]) -> str:
    flat = []
    for row in rows:
        choices = {f"choice_{i}": choice for i, choice in enumerate(row.get("choices", []))}
        cells = {
            key: json.dumps(value) if isinstance(value, list) else value
            for key, value in row.items()
            if key != "choices"
        }
        flat.append(cells | choices)
    into = io.StringIO(newline="")
    writer = csv.DictWriter(into, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    return into.getvalue()
