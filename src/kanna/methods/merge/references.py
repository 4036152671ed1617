"""How recipes name models: a directory or hub id, perhaps of a revision, perhaps with an adapter."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kanna.checkpoint.location import locate
from kanna.errors import InputError

_REMEDY = "write MODEL, MODEL+ADAPTER or MODEL@REVISION"


@dataclass(frozen=True)
class Reference:
    """`model@revision+adapter@revision`, of which all but the model may be missing."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None


def joined(given: object) -> str:
    """A reference as text, which may be given by its parts, {model: {path: ..., revision: ...}, lora: ...}.

    Raises:
        InputError: It is none.
    """
    if isinstance(given, Mapping) and "path" in given:
        return "@".join(_parts(given, ("path", "revision")))
    if isinstance(given, Mapping):
        return "+".join(_parts(given, ("model", "lora")))
    if not isinstance(given, str) or not given:
        raise InputError(f"{given!r} names no model", _REMEDY)
    return given


def _parts(given: Mapping[str, object], keys: tuple[str, ...]) -> list[str]:
    if keys[0] not in given or given.keys() - set(keys):
        raise InputError(f"{dict(given)} names no model", f"{_REMEDY}, or {' and '.join(keys)}")
    return [joined(given[key]) for key in keys if given.get(key) is not None]


def parsed(text: str, names: Container[str] = ()) -> Reference:
    """Take a reference apart; what is the name of a document or a directory as it stands is taken whole.

    Raises:
        InputError: A part of it is empty.
    """
    if text in names or Path(text).expanduser().is_dir():
        return Reference(text)
    model, plus, adapter = text.partition("+")
    name, revision = _revised(model, names)
    other, other_revision = _revised(adapter, ())
    if not name or (plus and not other):
        raise InputError(
            f"{text!r} names no {'adapter' if name else 'model'}",
            _REMEDY,
        )
    return Reference(name, revision, other or None, other_revision)


def _revised(text: str, names: Container[str]) -> tuple[str, str | None]:
    if text in names or Path(text).expanduser().is_dir():
        return text, None
    name, at, revision = text.partition("@")
    return (name, revision or None) if at else (text, None)


def bases(references: Iterable[str]) -> set[str]:
    """The models without adapters."""
    return {parsed(one).model for one in references}


def place(name: str, revision: str | None) -> Path:
    """Where a model or an adapter lies: a directory, or the snapshot of a hub id in the local cache.

    Raises:
        InputError: It is not there; a directory has no revisions.
    """
    if revision is None:
        return locate(name)
    if Path(name).expanduser().exists():
        raise InputError(f"{name}@{revision}: {name} is a directory", "directories have no revisions")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise InputError(
            f"no model {name!r} of revision {revision!r} in the local cache",
            "fetch that revision first, or give a directory; kanna itself fetches nothing",
        ) from None
