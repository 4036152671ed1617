"""What a report is made of: results that verbs wrote with --out, and model directories of kanna.

Results travel: a file that was cut, edited, or made by something else is refused with the name of the field
that is wrong. They are read by the models that they were written with; of a model directory, which has many
writers, this holds the fields that a page reads.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from kanna.checked import check_lookable, check_version, validated
from kanna.errors import InputError
from kanna.measure.results import BenchResult
from kanna.reporting.views import View
from kanna.result import Bytes, Result
from kanna.tasks.records import Evaluation
from kanna.tasks.verdict.comparison import Comparison

_SCHEMA = 1
# Of kanna.json, which has a version of its own.
_LINEAGE_FORMAT = 2
_LINEAGE = "kanna.json"
_AGAIN = "write it again with kanna"
_REMEDY = "give a folder that a verb of kanna wrote results to with --out, or a model of kanna"


class _Base(Result):
    name: str
    hash: str


class _StepScores(Result):
    model_bytes_before: Bytes | None = None
    model_bytes_after: Bytes | None = None
    comparison: Comparison | None = None
    stage: int | None = None
    calibration: str | None = None


class _Step(Result):
    method: str
    config: dict[str, Any]
    seed: int | None = None
    data_hash: str | None = None
    versions: dict[str, str] | None = None
    scores: _StepScores | None = None


class _Lineage(Result):
    base: _Base
    steps: list[_Step]
    files: dict[str, str] = Field(default_factory=dict)


class _Run(Result):
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class Model(Result):
    lineage: _Lineage
    run: _Run | None


KINDS: dict[str, type[BaseModel]] = {
    "compare": Comparison,
    "eval": Evaluation,
    "bench": BenchResult,
}


@dataclass(frozen=True)
class Source:
    """One file, or one model directory.

    Args:
        name: As the report names it; unique within the report.
        kind: eval, compare, bench, that of a view, or model.
        data: What the file holds; for a model {"lineage": kanna.json, "run": DIR.run.json or None}, and where
            there are the files that views know under their keys.
    """

    name: str
    kind: str
    data: Mapping[str, Any]


def read_sources(
    directories: Sequence[str | Path], views: Sequence[View] = (), examples: bool = True
) -> list[Source]:
    """Everything in the directories that a report can show.

    Args:
        directories: Folders of results, single results, and model directories.
        views: Of kinds beside eval, compare and bench.
        examples: Keep the texts of flipped examples, of answers and of samples; records of single rows are
            always left out.

    Raises:
        InputError: A directory that is missing or holds nothing of kanna's, a file that cannot be read, lacks
            something, or was written by a newer kanna.
    """
    if not directories:
        raise InputError("there is nothing to report", "give a folder of results or a model directory")
    sources: list[Source] = []
    for place in dict.fromkeys(Path(directory).expanduser().resolve() for directory in directories):
        here = _of(place, views, examples)
        if not here:
            raise InputError(f"{place} holds no results", _instead(place))
        sources += here
    return _apart(sources)


def _of(place: Path, views: Sequence[View], examples: bool) -> list[Source]:
    check_lookable(place, _REMEDY)
    if place.is_file():
        return _results([place], views, examples)
    if not place.is_dir():
        raise InputError(f"{place} is no directory and no file", _REMEDY)
    if (place / _LINEAGE).is_file():
        return [_model(place, views, examples)]
    found = _results(sorted(place.glob("*.json")), views, examples)
    # What a verb put into a model, such as a set of scales, is told with the model.
    home = next((above for above in place.parents[:2] if (above / _LINEAGE).is_file()), None)
    return found if found or home is None else [_model(home, views, examples)]


def _instead(place: Path) -> str:
    """What to give in place of a folder without results."""
    if (place / "config.json").is_file():
        return "it is a model as it was before kanna: kanna eval MODEL --task FILE --out DIR tells its worth"
    inside = sorted(path.parent.name for path in place.glob(f"*/{_LINEAGE}"))
    if inside:
        return f"give the models in it, such as {place / inside[0]}"
    rows = sorted(place.glob("*.jsonl"))
    if rows:
        return f"it holds rows: score a model on them with kanna eval MODEL --task {rows[0]} --out DIR"
    return _REMEDY


def _results(paths: Sequence[Path], views: Sequence[View], examples: bool) -> list[Source]:
    known = {view.kind: view for view in views}
    schemas = KINDS | {view.kind: view.schema for view in views if view.alone}
    sources = []
    for path in paths:
        data = _read(path)
        if isinstance(data, dict) and (kind := data.get("kind")) in schemas:
            _check(path, data, "schema_version")
            validated(schemas[kind], data, path, _AGAIN)
            beside = path.with_suffix(".run.json")
            if "run" not in data and beside.is_file():
                data["run"] = _read(beside)
            if kind not in known:
                data = _lean(data, examples)
            elif not examples:
                data = known[kind].lean(data)
            sources.append(Source(f"{path.parent.name}/{path.name}", kind, data))
    return sources


def _model(directory: Path, views: Sequence[View], examples: bool) -> Source:
    lineage = _read(directory / _LINEAGE)
    _check(directory / _LINEAGE, lineage, "format_version", _LINEAGE_FORMAT)
    run = directory.with_name(f"{directory.name}.run.json")
    data = {"lineage": lineage, "run": _read(run) if run.is_file() else None}
    validated(Model, data, directory / _LINEAGE, _AGAIN)
    for view in views:
        if (found := _inside(directory, view)) is not None:
            data[view.key] = found if examples else view.lean(found)
        for step in lineage["steps"]:
            if step["method"] == view.step:
                validated(view.schema, step.get("scores") or {}, directory / _LINEAGE, _AGAIN)
    return Source(directory.name, "model", data)


def _inside(directory: Path, view: View) -> dict[str, Any] | None:
    """What a model directory holds beside its lineage."""
    path = directory / (view.file or _LINEAGE)
    if view.gather is not None:
        found = view.gather(directory)
    else:
        found = _read(path) if view.file and path.is_file() else None
    if found is not None:
        _check(path, found, "schema_version")
        validated(view.schema, found, path, _AGAIN)
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}", "write it again, or leave it out") from error


def _check(path: Path, data: Any, key: str, newest: int = _SCHEMA) -> None:
    version = data.get(key) if isinstance(data, dict) else None
    check_version(version, path, newest, _AGAIN, key)


def _lean(data: Mapping[str, Any], examples: bool) -> dict[str, Any]:
    """A result without the records of single rows, which would make a page of megabytes."""
    if "tasks" not in data:
        return dict(data)
    drop = {"records"} if examples else {"records", "flips"}
    tasks = [{key: value for key, value in task.items() if key not in drop} for task in data["tasks"]]
    return {**data, "tasks": tasks}


def _apart(sources: Sequence[Source]) -> list[Source]:
    """Sources whose names are told apart by a number where two are alike."""
    seen: dict[str, int] = {}
    named = []
    for source in sources:
        count = seen[source.name] = seen.get(source.name, 0) + 1
        named.append(source if count == 1 else Source(f"{source.name} ({count})", source.kind, source.data))
    return named
