"""What a report is made of: results that verbs wrote with --out, and model directories of kanna."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kanna.errors import InputError
from kanna.reporting.schema import KINDS

_SCHEMA = 1
_LINEAGE = "kanna.json"
_WRITTEN = ("eval", "compare", "bench")


@dataclass(frozen=True)
class Source:
    """One file, or one model directory.

    Args:
        name: As the report names it; unique within the report.
        kind: eval, compare, bench, or model.
        data: What the file holds; for a model {"lineage": kanna.json, "run": DIR.run.json or None}.
    """

    name: str
    kind: str
    data: Mapping[str, Any]


def read_sources(directories: Sequence[str | Path], examples: bool = True) -> list[Source]:
    """Everything in the directories that a report can show.

    Args:
        examples: Keep the texts of flipped examples; records of single rows are always left out.

    Raises:
        InputError: A directory that is missing or holds nothing of kanna's, a file that cannot be read, lacks
            something, or was written by a newer kanna.
    """
    if not directories:
        raise InputError("there is nothing to report", "give a folder of results or a model directory")
    found: list[Source] = []
    for directory in dict.fromkeys(Path(one).expanduser().resolve() for one in directories):
        here = _of(directory, examples)
        if not here:
            raise InputError(
                f"{directory} holds no results",
                "give a folder that kanna eval, compare or bench wrote with --out, or a model of kanna",
            )
        found += here
    return _apart(found)


def _of(directory: Path, examples: bool) -> list[Source]:
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory", "give a folder of results or a model directory")
    if (directory / _LINEAGE).is_file():
        return [_model(directory)]
    found = []
    for path in sorted(directory.glob("*.json")):
        data = _read(path)
        if isinstance(data, dict) and data.get("kind") in _WRITTEN:
            _check(path, data, "schema_version")
            _check_fields(path, data["kind"], data)
            found.append(Source(f"{directory.name}/{path.name}", data["kind"], _lean(data, examples)))
    return found


def _model(directory: Path) -> Source:
    lineage = _read(directory / _LINEAGE)
    _check(directory / _LINEAGE, lineage, "format_version")
    run = directory.with_name(f"{directory.name}.run.json")
    said = {"lineage": lineage, "run": _read(run) if run.is_file() else None}
    _check_fields(directory / _LINEAGE, "model", said)
    return Source(directory.name, "model", said)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}", "write it again, or leave it out") from error


def _check(path: Path, data: Any, key: str) -> None:
    version = data.get(key) if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path} has no {key}", "write it again with kanna")
    if version > _SCHEMA:
        raise InputError(f"{path} has {key} {version}, this kanna knows {_SCHEMA}", "upgrade kanna")


def _check_fields(path: Path, kind: str, data: Mapping[str, Any]) -> None:
    try:
        KINDS[kind].model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}", "write it again with kanna") from error


def _lean(data: Mapping[str, Any], examples: bool) -> dict[str, Any]:
    """A result without the records of single rows, which would make a page of megabytes."""
    drop = {"records"} if examples else {"records", "flips"}
    tasks = [{key: value for key, value in task.items() if key not in drop} for task in data.get("tasks", [])]
    return {**data, **({"tasks": tasks} if "tasks" in data else {})}


def _apart(found: Sequence[Source]) -> list[Source]:
    """Sources whose names are told apart by a number where two are alike."""
    seen: dict[str, int] = {}
    named = []
    for source in found:
        count = seen[source.name] = seen.get(source.name, 0) + 1
        named.append(source if count == 1 else Source(f"{source.name} ({count})", source.kind, source.data))
    return named
