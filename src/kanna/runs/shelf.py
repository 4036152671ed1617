"""What is done with the sets of scales in a model's directory; one process at a time changes them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_bytes
from torch import Tensor

from kanna.checked import read_json
from kanna.checkpoint import applied, lineage, scale_journal, scale_sets
from kanna.checkpoint.location import locate
from kanna.checkpoint.safetensors_format import read_header
from kanna.checkpoint.scale_records import RECORD, TENSORS, Record, checked_record
from kanna.checkpoint.scale_sets import ScaleSet
from kanna.checkpoint.set_names import BASE, FOLDER
from kanna.checkpoint.whole import write_whole
from kanna.checkpoint.writer import output_directory
from kanna.errors import InputError
from kanna.runs.lock import Held, locked

_HEADER = "kanna_scales"


@dataclass(frozen=True)
class Listed:
    """One set on the shelf.

    Args:
        record: What it is.
        bytes: Of its files.
        active: Whether it is in use.
    """

    record: Record
    bytes: int
    active: bool

    def to_dict(self) -> dict[str, Any]:
        return {**self.record.model_dump(mode="json"), "bytes": self.bytes, "active": self.active}


@dataclass(frozen=True)
class Moved:
    """How the scales of one matrix differ between two sets, relative to what they were.

    Args:
        path: Of the module.
        mean: Square root of the mean square of the difference of d.
        most: Largest difference.
    """

    path: str
    mean: float
    most: float


def listed(base: str | Path) -> list[Listed]:
    """All sets of a model's directory.

    Raises:
        InputError: It holds no whole numbers, or a record is damaged.
    """
    sets, damaged = shelved(base)
    for error in damaged.values():
        raise error
    return sets


def shelved(base: str | Path) -> tuple[list[Listed], dict[str, InputError]]:
    """The sets whose record can be read, and name -> what is wrong with that of another."""
    place = opened(base)
    used = scale_journal.active(place)
    sets, damaged = list[Listed](), dict[str, InputError]()
    for name in scale_sets.names(place):
        try:
            sets.append(_listed(place, name, used))
        except InputError as error:
            damaged[name] = error
    return sets, damaged


def shown(base: str | Path, name: str) -> Listed:
    """One of them."""
    place = opened(base)
    scale_sets.find(place, name)
    return _listed(place, name, scale_journal.active(place))


def opened(base: str | Path) -> Path:
    """The directory of a model of whole numbers."""
    place = locate(base)
    scale_sets.codes_hash(place)
    return place


def activate(base: str | Path, name: str | None) -> None:
    """Use a set from now on, wherever the model is loaded; None is the model as it was quantised.

    Raises:
        InputError: There is no such set, or it is of another model.
    """
    place = opened(base)
    wanted = None if name == BASE else name
    if wanted is not None:
        scale_sets.find(place, wanted)  # nothing is made beside a model for a set that is not there
    with _alone(place):
        if wanted is not None:
            applied.checked(place, scale_sets.find(place, wanted))
        scale_journal.use(place, wanted)


def rollback(base: str | Path, to: str | None = None) -> str | None:
    """Use what was used before, or the set (or "base") that is named.

    Returns:
        What is used now; None for the model as it was quantised.
    """
    place = opened(base)
    with _alone(place):
        if to is None:
            return scale_journal.back(place)
        return scale_journal.back(place, None if to == BASE else to)


def remove(base: str | Path, name: str) -> None:
    """Take a set away.

    Raises:
        InputError: There is no such set, or it is in use.
    """
    place = opened(base)
    scale_sets.find(place, name)
    with _alone(place):
        found = scale_sets.find(place, name)
        if scale_journal.active(place) == name:
            raise InputError(f"{name!r} is in use", f"kanna scales rollback {base}, or use another one")
        gone = found.with_name(f".{name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        found.rename(gone)
        shutil.rmtree(gone)
        found.with_name(f"{name}.run.json").unlink(missing_ok=True)


def verify(base: str | Path, name: str | None = None) -> list[str]:
    """Compute the hashes of a set, or of all, again.

    Returns:
        The names of those that are whole and belong to this model.

    Raises:
        InputError: One is not; of several all that are not are named.
    """
    place = opened(base)
    lineage.verify(place)
    if name is not None:
        applied.checked(place, scale_sets.find(place, name))
        return [name]
    wanted = scale_sets.names(place)
    wrong = {one: error for one in wanted if (error := _wrong(place, one)) is not None}
    if wrong:
        sound = [one for one in wanted if one not in wrong]
        said = "; ".join(error.problem for error in wrong.values())
        whole = f"whole are {', '.join(sound)}; " if sound else ""
        raise InputError(
            f"{len(wrong)} of {len(wanted)} sets: {said}", whole + next(iter(wrong.values())).remedy
        )
    return wanted


def _wrong(place: Path, name: str) -> InputError | None:
    """Why a set is not whole or of another model; None where it is sound."""
    try:
        applied.checked(place, scale_sets.find(place, name))
    except InputError as error:
        return error
    return None


def diff(base: str | Path, one: str, other: str) -> list[Moved]:
    """How far two sets (or "base") lie apart, the matrices that differ most first."""
    place = opened(base)
    first, second = _changes(place, one), _changes(place, other)
    found = []
    for path in sorted({*first, *second}):
        a, b = _column(first.get(path)), _column(second.get(path))
        apart = a if b is None else b if a is None else a - b
        assert apart is not None
        found.append(Moved(path, float(apart.square().mean().sqrt()), float(apart.abs().max())))
    return sorted(found, key=lambda moved: (-moved.mean, moved.path))


def export(base: str | Path, name: str, out: str | Path, force: bool = False) -> Path:
    """Write a set as one file, its record in the header.

    Raises:
        InputError: There is no such set, or the file exists already.
    """
    place, target = opened(base), Path(out).expanduser()
    one = applied.checked(place, scale_sets.find(place, name))
    if target.is_dir():
        raise InputError(f"{target} is a directory", "name a file such as law.safetensors")
    note = json.dumps(one.record.model_dump(mode="json"), sort_keys=True)
    try:
        write_whole({target: save_bytes(dict(one.changes), metadata={_HEADER: note})}, replace=force)
    except FileExistsError as error:
        raise InputError(f"{target} exists already", "choose another name, or add --force") from error
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}", "choose another place") from error
    return target


def take(base: str | Path, file: str | Path, name: str | None = None, force: bool = False) -> str:
    """Put a set that was exported on the shelf of any copy of its model.

    Args:
        name: What it is called here; by default as it was.

    Returns:
        Its name.

    Raises:
        InputError: The file is none of a set, damaged, or of another model; or the name is taken.
    """
    place, path = opened(base), Path(file).expanduser()
    one = _from_file(path)
    scale_sets.check_codes(one.record, place, str(path))
    record = one.record.model_copy(update={"name": scale_sets.check_name(name or one.record.name)})
    with _alone(place), output_directory(place / FOLDER / record.name, force=force) as partial:
        scale_sets.write(partial, ScaleSet(record, one.changes))
    return record.name


def keep(base: str | Path, name: str, changes: Mapping[str, Tensor], **facts: Any) -> Path:
    """Put changes that somebody learnt on the shelf.

    Args:
        facts: Further fields of the record.
    """
    place = opened(base)
    one = scale_sets.made(name, scale_sets.codes_hash(place), changes, versions=lineage.versions(), **facts)
    target = scale_sets.folder(place, name)
    with _alone(place), output_directory(target) as partial:
        scale_sets.write(partial, one)
    return target


def _from_file(path: Path) -> ScaleSet:
    if not path.is_file():
        raise InputError(f"there is no file {path}", "kanna scales export writes one")
    metadata = _metadata(path)
    record = checked_record(metadata, path)
    return ScaleSet(record, scale_sets.tensors_in(path.read_bytes(), record, path))


def _metadata(path: Path) -> Mapping[str, Any]:
    """The record in a file's header; the file was checked to be whole."""
    read_header(path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    note = header.get("__metadata__", {}).get(_HEADER)
    if note is None:
        raise InputError(f"{path} is no set of scales", "give a file that kanna scales export wrote")
    try:
        found = json.loads(note)
    except ValueError as error:
        raise InputError(f"{path} is damaged", "export it again") from error
    return found if isinstance(found, dict) else {}


def _listed(place: Path, name: str, used: str | None) -> Listed:
    folder = place / FOLDER / name
    size = sum((folder / file).stat().st_size for file in (RECORD, TENSORS) if (folder / file).is_file())
    return Listed(checked_record(read_json(folder / RECORD), folder / RECORD), size, used == name)


def _changes(place: Path, name: str) -> Mapping[str, Tensor]:
    if name == BASE:
        return {}
    return applied.checked(place, scale_sets.find(place, name)).changes


def _column(change: Tensor | None) -> Tensor | None:
    """(m, groups or 1), so that sets of either granularity can be compared."""
    return change[:, None] if change is not None and change.dim() == 1 else change


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    try:
        with locked(place / FOLDER / ".lock"):
            yield
    except Held:
        raise InputError(f"another process changes the scales of {place}", "wait for it") from None
    except OSError as error:
        raise InputError(f"{place / FOLDER} cannot be written: {error.strerror}") from error
