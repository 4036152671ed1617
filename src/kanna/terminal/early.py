"""What can be refused at once: paths and settings that are wrong, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kanna.checked import check_lookable
from kanna.checkpoint.location import locate
from kanna.errors import InputError, suggestion
from kanna.models.device_names import check_device_name
from kanna.models.selection import check_expression
from kanna.tasks.data.rows import check_there
from kanna.tasks.data.task import HARNESS
from kanna.tasks.metrics.text_metrics import REGEX
from kanna.tasks.metrics.user_metric import COMMAND, METRICS, parse_user_metric


def check_paths(models: Iterable[str | Path] = (), files: Iterable[str | Path | None] = ()) -> None:
    """Raise InputError for a model or a file of data that is not there, as whoever reads it would.

    Args:
        files: Tasks, which may be of lm_eval, and texts; None for what was not given.
    """
    for model in models:
        locate(model)
    for file in files:
        if file is not None and not str(file).startswith(HARNESS):
            check_there(Path(file))


def check_out(out: Path | None, replaced: bool, needed: bool = False) -> None:
    """Raise InputError for an output that is there already and is not to be replaced, or is missing."""
    from kanna.runs.in_the_way import refuse_existing

    if out is None and needed:
        raise InputError("no output directory was given", "add --out DIR")
    if out is not None and not replaced:
        refuse_existing(out, False)


def check_settings(given: Mapping[str, Any]) -> None:
    """Raise InputError for a device, a selection, a metric or a file of data that is none.

    Args:
        given: What a verb is called with; configurations are looked into.
    """
    for name, value in given.items():
        if isinstance(value, BaseModel):
            _check_fields(value)
        elif isinstance(value, str) and name in _CHECKS:
            _CHECKS[name](value)
        elif isinstance(value, Path) and name == "recipe":
            _check_recipe(value.expanduser())


def _check_recipe(path: Path) -> None:
    remedy = "give a file of YAML, such as examples/ has"
    check_lookable(path, remedy)
    if not path.exists():
        raise InputError(f"{path} does not exist", remedy)


def _check_fields(config: BaseModel) -> None:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, str) and name in _CHECKS:
            _CHECKS[name](value)
        elif isinstance(value, Path) and name not in _NO_DATA and _metavar(field) == "FILE":
            check_there(value.expanduser())


def _metavar(field: FieldInfo) -> object:
    said = field.json_schema_extra
    return said.get("metavar") if isinstance(said, dict) else None


def _check_metric(name: str) -> None:
    """Raise InputError for a metric that is of no kind of rows, and none of the user's own."""
    if name.startswith(REGEX) or parse_user_metric(name) is not None:
        return
    known = dict.fromkeys(metric for metrics in METRICS.values() for metric in metrics)
    if name not in known and name != _OF_MERGES:
        raise InputError(
            f"{name!r} is no metric{suggestion(name, known)}",
            f"or give your own: file.py:function, {COMMAND}COMMAND",
        )


# Names of settings -> what they must be.
_CHECKS: Mapping[str, Callable[[str], object]] = {
    "device": check_device_name,
    "select": check_expression,
    "skip": check_expression,
    "metric": _check_metric,
}
# A metric as verbs of merging write it.
_OF_MERGES = "logloss"
# Files that are no data, whose readers say better what they are.
_NO_DATA = ("costs", "tolerance")
