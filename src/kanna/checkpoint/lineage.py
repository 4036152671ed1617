"""kanna.json: where a checkpoint comes from, what was done to it, and the sha256 of its files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from kanna.checked import check_version, plain_floats, read_json, validated
from kanna.checkpoint.outputs import run_record_path
from kanna.checkpoint.reader import Checkpoint, NotFinite, not_finite, read_pieces
from kanna.checkpoint.safetensors_format import TORCH_DTYPES, Stored
from kanna.checkpoint.writer import write_json
from kanna.errors import InputError

FILE = "kanna.json"
# 2: a step may have `inputs`. Files of the first version have none, and are read as they are.
FORMAT_VERSION = 2
_WRITE_AGAIN = "write the checkpoint again"
# The model card is for people to edit, the recipe names paths of whoever ran it; the lineage cannot hold
# its own digest.
_NOT_RECORDED = (FILE, "README.md", "recipe.yaml")
# Sets of scales come and go, and hold digests of their own.
_SCALES = "scales/"
# They tell who saved a configuration from where, not what the model is.
_NOT_THE_MODEL = ("_name_or_path", "transformers_version")
_RECORDED_VERSIONS = ("kanna", "torch", "transformers")
# Bytes read at once: still in the processor's cache for the second hash; whole values of any dtype.
_PIECE = 2**22


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(_Record):
    """The model that the first step read: its hub id or directory's base name, and its `base_hash`."""

    name: str
    hash: str


class Input(_Record):
    """A model that a step read beside others, or in place of the one before: its name and `base_hash`."""

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
        inputs: Of a step that reads several models: all of them, in the order of its configuration.
    """

    method: str
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int | None = None
    threads: int | None = None
    data_hash: str | None = None
    scores: dict[str, Any] = Field(default_factory=dict)
    inputs: tuple[Input, ...] = ()


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
    check_version(data.get("format_version"), path, FORMAT_VERSION, _WRITE_AGAIN)
    return validated(Lineage, data, f"{path} is damaged", _WRITE_AGAIN)


def write(
    directory: Path, base: Base, steps: tuple[Step, ...], known: Mapping[str, str] | None = None
) -> Lineage:
    """Write kanna.json with the digests of all other files of the directory; call it last.

    Args:
        known: sha256 of files, by relative path, that was taken while they were written.
    """
    lineage = Lineage(base=base, steps=steps, files=file_digests(directory, known))
    write_json(directory / FILE, lineage.model_dump(mode="json"))
    return lineage


def file_digests(directory: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Relative path -> sha256 of every file, kanna.json, recipe.yaml and README.md left out.

    Args:
        known: Of files that need not be read again.
    """
    known = known or {}
    return {name: known.get(name) or file_digest(path) for name, path in file_names(directory).items()}


def file_names(directory: Path) -> dict[str, Path]:
    """Relative path -> path of every file that a lineage holds a digest of."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in files}
    return {
        name: path
        for name, path in names.items()
        if name not in _NOT_RECORDED and not name.startswith(_SCALES)
    }


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(facts: object) -> str:
    """sha256 of the canonical JSON of what something depends on, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def verify(directory: Path, scan: Scan | None = None) -> Lineage | None:
    """Compare every file with the sha256 recorded for it. Reads all the data.

    Args:
        scan: Of the directory: the files that it holds digests of are not read again.

    Returns:
        The lineage, or None when there is none to compare with.

    Raises:
        InputError: A recorded file is missing or has changed; it is named.
    """
    lineage, known = read(directory), {} if scan is None else scan.files
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
        if (known.get(name) or file_digest(path)) != digest:
            raise InputError(
                f"{path} has changed since kanna wrote it: its sha256 is not the recorded one",
                "fetch or write it again; if the change was meant, remove kanna.json",
            )
    return lineage


@dataclass(frozen=True)
class Scan:
    """What one pass over a model's bytes showed.

    Args:
        base_hash: See `base_hash`.
        files: sha256 of each file of weights, by its path in the directory; empty unless asked for.
        bad: The first tensor that is not finite; None where there is none, or nobody asked.
    """

    base_hash: str
    files: Mapping[str, str]
    bad: NotFinite | None = None

    def refuse_not_finite(self) -> None:
        """Raise InputError naming a tensor that holds NaN or infinity."""
        if self.bad is not None:
            raise self.bad.error()


def base_hash(checkpoint: Checkpoint) -> str:
    """sha256 of what a model is: its configuration and its tensors, whatever the files they lie in.

    Taken over the canonical configuration and the sorted (name, dtype, shape, sha256 of the data), so it does
    not depend on sharding, path, or the order in files. Reads all the data.
    """
    return scan(checkpoint, finite=False, digests=False).base_hash


def scan(checkpoint: Checkpoint, finite: bool, digests: bool = True) -> Scan:
    """Read every byte of the weights once, a few megabytes in memory, for all that anybody asks of them.

    Args:
        finite: Look for NaN and infinity.
        digests: Take the sha256 of the files too, for `verify`.
    """
    read = [_read_file(checkpoint, file, finite, digests) for file in checkpoint.files]
    data = {name: digest for file in read for name, digest in file.tensors.items()}
    files = {file.name: file.digest for file in read if file.digest is not None}
    bad = next((file.bad for file in read if file.bad is not None), None)
    return Scan(hash_of(checkpoint, data), files, bad)


def hash_of(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    """`base_hash` of a model whose tensors somebody has read.

    Args:
        digests: sha256 of each tensor's data, by name.
    """
    facts = [
        [name, stored.dtype, list(stored.shape), digests[name]]
        for name, stored in sorted(checkpoint.tensors.items())
    ]
    config = {key: value for key, value in checkpoint.config.items() if key not in _NOT_THE_MODEL}
    canonical = json.dumps([plain_floats(config), facts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class _ReadFile:
    """What a pass over one file of weights showed: its path in the directory, and digests."""

    name: str
    tensors: Mapping[str, str]
    digest: str | None
    bad: NotFinite | None


def _read_file(checkpoint: Checkpoint, file: Path, finite: bool, digests: bool) -> _ReadFile:
    held = {name: stored for name, stored in checkpoint.tensors.items() if stored.file == file}
    hashes = {name: hashlib.sha256() for name in held}
    lost = dict.fromkeys(held, 0)
    whole = hashlib.sha256() if digests else None
    pieces = list(_pieces(held))
    for (name, _), data in zip(pieces, read_pieces(file, (size for _, size in pieces)), strict=True):
        if whole is not None:
            whole.update(data)
        if name is not None:
            hashes[name].update(data)
            if finite:
                lost[name] += not_finite(torch.frombuffer(data, dtype=TORCH_DTYPES[held[name].dtype]))
    bad = next((NotFinite(name, n, math.prod(held[name].shape)) for name, n in lost.items() if n), None)
    of_tensors = {name: hashed.hexdigest() for name, hashed in hashes.items()}
    path = file.relative_to(checkpoint.directory).as_posix()
    return _ReadFile(path, of_tensors, None if whole is None else whole.hexdigest(), bad)


def _pieces(tensors: Mapping[str, Stored]) -> Iterator[tuple[str | None, int]]:
    """(tensor, bytes) of each piece in the order of the file; None is the header."""
    yield None, min(stored.offset for stored in tensors.values())
    for name, stored in tensors.items():
        for start in range(0, stored.bytes, _PIECE):
            yield name, min(_PIECE, stored.bytes - start)


def write_run_record(out: Path, record: Mapping[str, Any]) -> Path:
    """Write `OUT.run.json` beside the directory: timings, memory, dates, all that may differ between runs."""
    path = run_record_path(out)
    write_json(path, record)
    return path
