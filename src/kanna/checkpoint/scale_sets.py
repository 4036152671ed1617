"""Sets of scales: what one task makes of a model of whole numbers, in a small folder inside its directory.

A set holds d for every matrix, float32: scales are s (1 + d). It is bound to the codes, zero-points *and*
scales that it was learnt on by a hash of these, so that it can never be laid over others.

    BASE/scales/NAME/scales.safetensors    module path -> d, (m,) of channels or (m, groups)
    BASE/scales/NAME/scales.json           what it is and where it comes from
    BASE/scales/active.json                a journal of which one is used (`scale_journal`)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from kanna.checked import read_json
from kanna.checkpoint.declared import forms_of
from kanna.checkpoint.lineage import digest_of
from kanna.checkpoint.reader import read_headers, weight_files
from kanna.checkpoint.scale_records import FETCH_OR_TUNE, RECORD, TENSORS, Granularity, Record, checked_record
from kanna.checkpoint.set_names import BASE, FOLDER, is_name
from kanna.checkpoint.writer import write_json
from kanna.errors import InputError, suggestion
from kanna.forms.integer import PACKED, SCALE, ZERO

_PIECE = 2**22
# Of how far scales moved.
_DIGITS = 6


@dataclass(frozen=True)
class ScaleSet:
    """One set.

    Args:
        record: What it is.
        changes: Module path -> d.
    """

    record: Record
    changes: Mapping[str, Tensor]


def made(name: str, codes: str, changes: Mapping[str, Tensor], **facts: Any) -> ScaleSet:
    """A set of changes that were learnt.

    Args:
        facts: Further fields of `Record`.
    """
    check_name(name)
    kept = {path: value.detach().cpu().float().contiguous() for path, value in sorted(changes.items())}
    granularity: Granularity = "channel" if all(value.dim() == 1 for value in kept.values()) else "group"
    record = Record(
        name=name,
        codes=codes,
        granularity=granularity,
        tensors=_digest(save_bytes(kept)),
        numbers=sum(value.numel() for value in kept.values()),
        flipped=sum(int((value < -1).sum()) for value in kept.values()),
        moved={path: moved(value) for path, value in kept.items()},
        **facts,
    )
    return ScaleSet(record, kept)


def moved(change: Tensor) -> tuple[float, float]:
    """Root of the mean square of d, and the largest, as they are recorded."""
    found = change.double()
    mean, most = float(found.square().mean().sqrt()), float(found.abs().max())
    return float(f"{mean:.{_DIGITS}g}"), float(f"{most:.{_DIGITS}g}")


def check_name(name: str) -> str:
    """Raise InputError for what cannot be the name of a set."""
    if not is_name(name):
        raise InputError(
            f"a set of scales cannot be called {name!r}",
            f"use letters, digits, - and _; {BASE!r} is the model without any",
        )
    return name


def folder(base: Path, name: str) -> Path:
    """Where a set lies or will lie."""
    return base / FOLDER / check_name(name)


def names(base: Path) -> list[str]:
    """Of the sets in a model's directory."""
    return sorted(
        path.parent.name for path in (base / FOLDER).glob(f"*/{RECORD}") if path.parent.name[0] != "."
    )


def find(base: Path, name: str) -> Path:
    """The folder of a set that is there.

    Raises:
        InputError: It is not; says which are.
    """
    known = names(base)
    if name not in known:
        listed = f"there are {', '.join(known)}" if known else "there is none yet: kanna tune makes one"
        meant = suggestion(name, known).removeprefix(f"; {listed}")  # all of them are named once
        raise InputError(f"{base} has no scales {name!r}{meant}", listed)
    return base / FOLDER / name


def write(directory: Path, one: ScaleSet) -> None:
    """Write a set into its folder, which must be new."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TENSORS).write_bytes(save_bytes(dict(one.changes)))
    write_json(directory / RECORD, one.record.model_dump(mode="json"))


def read(directory: Path) -> ScaleSet:
    """Read a set.

    Raises:
        InputError: A file is missing, cut short, changed, or of a newer format.
    """
    record = read_record(directory / RECORD)
    try:
        data = (directory / TENSORS).read_bytes()
    except OSError as error:
        raise InputError(f"{directory / TENSORS} cannot be read: {error.strerror}", FETCH_OR_TUNE) from error
    return ScaleSet(record, tensors_in(data, record, directory / TENSORS))


def read_record(path: Path) -> Record:
    """What a set is."""
    return checked_record(read_json(path), path)


def tensors_in(data: bytes, record: Record, where: str | Path) -> dict[str, Tensor]:
    """Module path -> d, from the bytes of a file that a record speaks of."""
    try:
        found = load_bytes(data)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{where} is damaged: {error}", FETCH_OR_TUNE) from error
    if _digest(save_bytes(found)) != record.tensors:
        raise InputError(f"{where} has changed: its sha256 is not the recorded one", FETCH_OR_TUNE)
    for path, value in found.items():
        if value.dtype != torch.float32 or not torch.isfinite(value).all():
            raise InputError(
                f"the change of {path} in {where} is not of finite float32 numbers", FETCH_OR_TUNE
            )
    return found


def check_codes(record: Record, base: Path, where: str | Path) -> None:
    """Raise InputError, with both hashes, for a set of another model than the one in `base`."""
    found = codes_hash(base)
    if record.codes != found:
        raise InputError(
            f"{where} belongs to other codes, zero-points and scales than {base} holds: "
            f"it was learnt on {record.codes}, and here are {found}",
            "use it with the model that it was tuned on" + (f" ({record.base})" if record.base else ""),
        )


def codes_hash(base: Path) -> str:
    """sha256 of the whole numbers of a model: its forms, codes, zero-points and scales, whatever their files.

    Reads these bytes once in a process, unless the files change.

    Raises:
        InputError: There are none.
    """
    files = weight_files(base)
    versions = tuple(
        (str(file), file.stat().st_ino, file.stat().st_size, file.stat().st_mtime_ns) for file in files
    )
    return _codes_hash(base, files, versions)


@functools.lru_cache(maxsize=64)
def _codes_hash(base: Path, files: tuple[Path, ...], _: object) -> str:
    tensors = {
        name: stored
        for name, stored in sorted(read_headers(files).items())
        if name.rpartition(".")[2] in (PACKED, SCALE, ZERO)
    }
    if not tensors:
        raise InputError(f"{base} holds no whole numbers, so it has no scales", "kanna quantize makes them")
    facts: list[object] = []
    for name, stored in tensors.items():
        facts.append(
            [name, stored.dtype, list(stored.shape), _piece_digest(stored.file, stored.offset, stored.bytes)]
        )
    forms = forms_of(read_json(base / "config.json"))
    declared = {path: form.to_json() for path, form in sorted(forms.items())}
    return digest_of([declared, facts])


def _piece_digest(file: Path, offset: int, size: int) -> str:
    hashed = hashlib.sha256()
    with file.open("rb") as opened:
        opened.seek(offset)
        while size > 0 and (data := opened.read(min(size, _PIECE))):
            hashed.update(data)
            size -= len(data)
    return hashed.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
