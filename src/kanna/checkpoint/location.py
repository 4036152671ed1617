"""Where a model lies: in a directory, or in the local cache of the hub. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from kanna.checked import check_lookable, check_type
from kanna.errors import InputError


def locate(model: str | Path) -> Path:
    """The directory of a model: itself, or the snapshot of a hub id in the local cache.

    Raises:
        InputError: Neither exists.
    """
    check_type("a model", model, (str, Path), 'give its directory, such as "models/base"', required=True)
    path = Path(model).expanduser()
    check_lookable(path, "give the directory of a model")
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{path} is a file; a model is a directory", f"give {path.parent}")
    cached = _cached_snapshot(str(model))
    if cached is None:
        raise InputError(
            f"no model {str(model)!r}: no such directory, and no such hub id in the local cache",
            "give the directory of a model, or fetch the hub id first; kanna itself fetches nothing",
        )
    return cached


def model_name(model: str | Path, directory: Path) -> str:
    """The hub id, or the base name of a directory: nothing of where it lies."""
    return directory.resolve().name if Path(model).expanduser().is_dir() else str(model)


def _cached_snapshot(repo: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
