"""Folders of results: one JSON file per evaluation, comparison or bench, for `kanna report`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kanna.checkpoint.outputs import run_record_path
from kanna.checkpoint.whole import write_json_whole
from kanna.checkpoint.writer import write_json
from kanna.errors import InputError
from kanna.runs.record import when_and_where


def result_path(out: Path, kind: str, model: str | Path) -> Path:
    """DIR/KIND-MODEL.json"""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(model).name or str(model))
    return out / f"{kind}-{name}.json"


def check_free(out: Path | None, kind: str, model: str | Path, force: bool) -> None:
    """Raise InputError where the result could not be written, before any long work."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", "give a folder to --out")
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"nothing can be written into {place}", "give another folder to --out")
    path = result_path(out, kind, model)
    if path.is_dir():
        raise InputError(f"{path}, where the result goes, is a directory", "choose another folder")
    if os.path.lexists(path) and not force:
        raise _exists(path)


def write_result(
    out: Path | None,
    kind: str,
    model: str | Path,
    result: Mapping[str, Any],
    force: bool = False,
    run: Mapping[str, Any] | None = None,
) -> Path | None:
    """Write a result whole, with date and machine, or nothing where no folder is given.

    Args:
        run: What it took, with date and machine: that then goes to a file beside, and the result, which can
            be resumed, holds nothing that differs between runs.

    Raises:
        InputError: Its name was taken meanwhile, and `force` is not set.
    """
    if out is None:
        return None
    path = result_path(out, kind, model)
    try:
        write_json_whole(path, {**(when_and_where() if run is None else {}), **result}, replace=force)
    except FileExistsError:
        raise _exists(path) from None
    if run is not None:
        write_json(run_path(path), run)
    return path


def run_path(result: Path) -> Path:
    """Beside a result, what it took, if that is not part of it: KIND-MODEL.run.json"""
    return run_record_path(result.with_suffix(""))


def _exists(path: Path) -> InputError:
    return InputError(f"{path} exists already", "choose another folder, or add --force")
