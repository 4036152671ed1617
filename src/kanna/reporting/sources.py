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
_WRITTEN = ("eval", "compare", "bench", "laser-search", "laser-compose", "laser-analysis")
# What a model directory holds of how its edits were found: file -> name and kind.
_FOUND = {"laser-search.json": ("search", "laser-search"), "laser-stages.json": ("stages", "laser-compose")}
_REMEDY = "give a folder that kanna eval, compare, bench or laser wrote with --out, or a model of kanna"


@dataclass(frozen=True)
class Source:
    """One file, or one model directory.

    Args:
        name: As the report names it; unique within the report.
        kind: eval, compare, bench, laser-search, laser-compose, laser-analysis, or model.
        data: What the file holds; for a model {"lineage": kanna.json, "run": DIR.run.json or None}, and where
            there are {"search": laser-search.json, "stages": laser-stages.json}.
    """

    name: str
    kind: str
    data: Mapping[str, Any]


def read_sources(directories: Sequence[str | Path], examples: bool = True) -> list[Source]:
    """Everything in the directories that a report can show.

    Args:
        directories: Folders of results, single results, and model directories.
        examples: Keep the texts of flipped examples, of answers and of samples; records of single rows are
            always left out.

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
            raise InputError(f"{directory} holds no results", _REMEDY)
        found += here
    return _apart(found)


def _of(place: Path, examples: bool) -> list[Source]:
    if place.is_file():
        return _results([place], examples)
    if not place.is_dir():
        raise InputError(f"{place} is no directory and no file", _REMEDY)
    if (place / _LINEAGE).is_file():
        return [_model(place)]
    return _results(sorted(place.glob("*.json")), examples)


def _results(paths: Sequence[Path], examples: bool) -> list[Source]:
    found = []
    for path in paths:
        data = _read(path)
        if isinstance(data, dict) and data.get("kind") in _WRITTEN:
            _check(path, data, "schema_version")
            _check_fields(path, data["kind"], data)
            found.append(Source(f"{path.parent.name}/{path.name}", data["kind"], _lean(data, examples)))
    return found


def _model(directory: Path) -> Source:
    lineage = _read(directory / _LINEAGE)
    _check(directory / _LINEAGE, lineage, "format_version")
    run = directory.with_name(f"{directory.name}.run.json")
    said = {"lineage": lineage, "run": _read(run) if run.is_file() else None}
    _check_fields(directory / _LINEAGE, "model", said)
    for name, (key, kind) in _FOUND.items():
        if (path := directory / name).is_file():
            said[key] = _read(path)
            _check(path, said[key], "schema_version")
            _check_fields(path, kind, said[key])
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
    if data["kind"] == "laser-analysis":
        return dict(data) if examples else _wordless(data)
    if "tasks" not in data:
        return dict(data)
    drop = {"records"} if examples else {"records", "flips"}
    tasks = [{key: value for key, value in task.items() if key not in drop} for task in data["tasks"]]
    return {**data, "tasks": tasks}


def _wordless(data: Mapping[str, Any]) -> dict[str, Any]:
    """An analysis without what the models were asked and what they wrote."""
    kept = {key: value for key, value in data.items() if key not in ("answers", "samples")}
    samples = data.get("samples")
    if samples is None:
        return kept
    numbers = {
        name: {key: value for key, value in samples[name].items() if key != "texts"}
        for name in ("base", "edited")
    }
    return {**kept, "samples": numbers}


def _apart(found: Sequence[Source]) -> list[Source]:
    """Sources whose names are told apart by a number where two are alike."""
    seen: dict[str, int] = {}
    named = []
    for source in found:
        count = seen[source.name] = seen.get(source.name, 0) + 1
        named.append(source if count == 1 else Source(f"{source.name} ({count})", source.kind, source.data))
    return named
