"""kanna.json: where a checkpoint comes from, what was done to it, and the sha256 of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kanna.checkpoint.reader import Checkpoint, read_bytes, read_json
from kanna.checkpoint.writer import write_json
from kanna.errors import InputError

FILE = "kanna.json"
FORMAT_VERSION = 1
_WRITE_AGAIN = "write the checkpoint again"
# The model card is for people to edit; the lineage cannot hold its own digest.
_NOT_RECORDED = (FILE, "README.md")
# They tell who saved a configuration from where, not what the model is.
_NOT_THE_MODEL = ("_name_or_path", "transformers_version")
_RECORDED_VERSIONS = ("kanna", "torch", "transformers")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(_Record):
    """The model that the first step read: its hub id or directory's base name, and its `base_hash`."""

    name: str
    hash: str


class Step(_Record):
    """One method that was applied.

    Args:
        method: Its name.
        config: Its full configuration.
        versions: Of the libraries that computed it.
        seed: Of everything drawn.
        threads: The number of threads, on which the last bits may depend.
        data_hash: sha256 of the calibration or training data.
        scores: What was measured.
    """

    method: str
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int | None = None
    threads: int | None = None
    data_hash: str | None = None
    scores: dict[str, Any] = Field(default_factory=dict)


class Lineage(_Record):
    """All that kanna.json holds."""

    format_version: int = FORMAT_VERSION
    base: Base
    steps: tuple[Step, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: version(name) for name in _RECORDED_VERSIONS}


def read(directory: Path) -> Lineage | None:
    """The lineage of a directory, or None for one that kanna did not write.

    Raises:
        InputError: kanna.json is damaged, or of a newer format.
    """
    path = directory / FILE
    if not path.exists():
        return None
    data = read_json(path)
    check_format_version(data.get("format_version"), path)
    try:
        return Lineage.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} is damaged: {where}: {first['msg']}", "write the checkpoint again"
        ) from error


def check_format_version(found: object, where: str | Path) -> None:
    """Raise InputError for a format that this version of kanna cannot read."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise InputError(
            f"{where} has no sound format_version (found {found!r})", "write the checkpoint again"
        )
    if found > FORMAT_VERSION:
        raise InputError(
            f"{where} has format_version {found}; this kanna reads up to {FORMAT_VERSION}", "upgrade kanna"
        )


def write(directory: Path, base: Base, steps: tuple[Step, ...]) -> Lineage:
    """Write kanna.json with the digests of all other files of the directory; call it last."""
    lineage = Lineage(base=base, steps=steps, files=file_digests(directory))
    write_json(directory / FILE, lineage.model_dump(mode="json"))
    return lineage


def file_digests(directory: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file, kanna.json and README.md left out."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in names.items() if name not in _NOT_RECORDED}


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(directory: Path) -> Lineage | None:
    """Compare every file with the sha256 recorded for it. Reads all the data.

    Returns:
        The lineage, or None when there is none to compare with.

    Raises:
        InputError: A recorded file is missing or has changed; it is named.
    """
    lineage = read(directory)
    for name, digest in ({} if lineage is None else lineage.files).items():
        path = directory / name
        if (
            not path.absolute().is_relative_to(directory.absolute())
            or ".." in path.relative_to(directory).parts
        ):
            raise InputError(
                f"{directory / FILE} names {name!r}, which lies outside the directory",
                "do not use this checkpoint unless you know who wrote it",
            )
        if not path.is_file():
            raise InputError(f"{path} is missing, though kanna.json records it", "fetch or write it again")
        if file_digest(path) != digest:
            raise InputError(
                f"{path} has changed since kanna wrote it: its sha256 is not the recorded one",
                "fetch or write it again; if the change was meant, remove kanna.json",
            )
    return lineage


def base_hash(checkpoint: Checkpoint) -> str:
    """sha256 of what a model is: its configuration and its tensors, whatever the files they lie in.

    Taken over the canonical configuration and the sorted (name, dtype, shape, sha256 of the data), so it does
    not depend on sharding, path, or the order in files. Reads all the data, one tensor in memory.
    """
    tensors = [
        [name, stored.dtype, list(stored.shape), hashlib.sha256(read_bytes(stored)).hexdigest()]
        for name, stored in sorted(checkpoint.tensors.items())
    ]
    canonical = json.dumps([_identity(checkpoint.config), tensors], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}


def write_run_record(out: Path, record: Mapping[str, Any]) -> Path:
    """Write `OUT.run.json` beside the directory: timings, memory, dates, all that may differ between runs."""
    path = out.with_name(out.name + ".run.json")
    write_json(path, record)
    return path
