"""All tensors of a merge into files of unfinished work; after a kill it goes on behind what is written."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kanna.checkpoint.parts import Parts
from kanna.checkpoint.reader import INDEX, Checkpoint
from kanna.checkpoint.writer import SHARD_BYTES, plan_shards, tensor_bytes, write_json
from kanna.errors import InputError
from kanna.methods.merge.adapted import stored_part
from kanna.methods.merge.cuts import Cuts, cuts_of
from kanna.methods.merge.journal import Journal, Note
from kanna.methods.merge.plan import Merged, MergePlan
from kanna.methods.merge.streaming import Figures, Stream, total
from kanna.progress import Progress, going

FOLDER, _JOURNAL = "merge", "journal.jsonl"
_STAGE = "merge"


@dataclass(frozen=True)
class Shards:
    """Files that are whole.

    Args:
        files: Path of each safetensors file -> its sha256.
        digests: For each model, sha256 of its tensors' data by name.
        figures: Of all tensors.
        index: What their index says; None for one file.
    """

    files: Mapping[Path, str]
    digests: tuple[Mapping[str, str], ...]
    figures: Figures
    index: Mapping[str, Any] | None

    def put_into(self, directory: Path) -> None:
        """Give the files second names in a directory, so that a kill before it is named loses none."""
        for path in self.files:
            _link(path, directory / path.name)
        if self.index is not None:
            write_json(directory / INDEX, self.index)


def written_shards(plan: MergePlan, work: Path, progress: Progress, shard_bytes: int = SHARD_BYTES) -> Shards:
    """Merge every tensor, or go on with it.

    Args:
        work: The folder of unfinished work.

    Raises:
        InputError: An input or the result is not fit to be written; nothing is kept then.
    """
    folder = work / FOLDER
    folder.mkdir(exist_ok=True)
    try:
        return _Writing(plan, folder, progress).shards(shard_bytes)
    except InputError:
        shutil.rmtree(folder)
        raise


class _Writing:
    def __init__(self, plan: MergePlan, folder: Path, progress: Progress) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self._journal = Journal(folder / _JOURNAL)
        self._tensors = {tensor.spec.name: tensor for tensor in plan.tensors}
        self._notes: list[Note] = []
        self._done = 0
        self._cuts: Cuts | None = None

    def shards(self, shard_bytes: int) -> Shards:
        specs = [tensor.spec for tensor in self._plan.tensors]
        planned = plan_shards(specs, shard_bytes)
        self._cuts = cuts_of(self._plan, self._folder, self._progress)
        files = {self._folder / shard.file: self._file(Parts(self._folder, shard)) for shard in planned}
        self._tell("")
        index = None
        if len(planned) > 1:
            places = {spec.name: shard.file for shard in planned for spec in shard.specs}
            index = {"metadata": {"total_size": sum(spec.bytes for spec in specs)}, "weight_map": places}
        digests = self._digests()
        return Shards(files, digests, total([note.figures for note in self._notes]), index)

    def _digests(self) -> tuple[dict[str, str], ...]:
        """Of each model; what no tensor is made from, such as layers that are left out, is read for it."""
        found: list[dict[str, str]] = [{} for _ in self._plan.inputs.models]
        for note in self._notes:
            for part, digest in zip(self._tensors[note.tensor].parts, note.inputs, strict=True):
                found[part.model][part.tensor] = digest
        for model, digests in zip(self._plan.inputs.models, found, strict=True):
            for name in model.tensors:
                if name not in digests:
                    self._tell(f"checking {name}")
                    digests[name] = digest_of(model, name, self._plan.chunk)
        return tuple(found)

    def _file(self, parts: Parts) -> str:
        """Fill one file; its sha256."""
        whole = hashlib.sha256(parts.header)
        for spec in parts.specs:
            tensor = self._tensors[spec.name]
            note, after = self._taken_up(parts, tensor, whole)
            if note is None:
                note = self._merged(parts, tensor, after := whole)
            whole = after
            self._notes.append(note)
            self._done += spec.bytes
        return whole.hexdigest()

    def _taken_up(self, parts: Parts, tensor: Merged, whole: Any) -> tuple[Note | None, Any]:
        """What was noted of a tensor, if that is what its file holds, and the hash behind it."""
        note = self._journal.next(tensor.spec.name)
        if note is None:
            return None, whole
        self._tell(f"checking {tensor.spec.name}")
        after = whole.copy()
        for piece in parts.read(tensor.spec):
            after.update(piece)
        if after.hexdigest() != note.file:
            return None, whole
        self._journal.accept()
        return note, after

    def _merged(self, parts: Parts, tensor: Merged, whole: Any) -> Note:
        stream = Stream(self._plan, tensor, self._cuts)

        def pieces() -> Iterator[memoryview]:
            part = 0
            for values in stream.pieces():
                self._tell(tensor.spec.name, part)
                data = tensor_bytes(values)
                whole.update(data)
                part += data.nbytes
                yield data

        parts.write(tensor.spec, pieces())
        note = Note(
            tensor.spec.name, whole.hexdigest(), tuple(stream.digests), tuple(stream.figures.to_list())
        )
        self._journal.add(note)
        return note

    def _tell(self, what: str, part: int = 0) -> None:
        """Megabytes of the output that are done."""
        megabytes = max(1, self._plan.bytes_written // 10**6)
        done = min(megabytes, (self._done + part) // 10**6)
        self._progress(going(_STAGE, what), done if what else megabytes, megabytes)


def digest_of(model: Checkpoint, name: str, chunk: int) -> str:
    """sha256 of a tensor as it lies on the disk."""
    found, count = hashlib.sha256(), math.prod(model.shape(name))
    for start in range(0, count, chunk):
        values = stored_part(model, name, start, min(count, start + chunk))
        found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _link(path: Path, name: Path) -> None:
    try:
        name.hardlink_to(path)
    except OSError:  # a file system without links
        path.replace(name)
