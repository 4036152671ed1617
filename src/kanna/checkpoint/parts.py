"""Safetensors files that are filled piece by piece, also by several processes one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.writer import Shard, write_data

# Bytes read at once.
_PIECE = 2**22


class Parts:
    """One file, whose header says where each tensor's data go.

    Args:
        directory: Where it lies.
        shard: What it is to hold. A file of its name that is there already is gone on with, if it begins
            with its header.
    """

    def __init__(self, directory: Path, shard: Shard) -> None:
        self.path, self._shard = directory / shard.file, shard
        if not self._begun():
            with self.path.open("wb") as file:
                write_data(file, memoryview(shard.layout.header))
                file.truncate(shard.layout.size)

    @property
    def header(self) -> bytes:
        return self._shard.layout.header

    @property
    def specs(self) -> list[TensorSpec]:
        """Its tensors, in the order of their data."""
        return sorted(self._shard.specs, key=lambda spec: (self._shard.layout.offsets[spec.name], spec.bytes))

    def write(self, spec: TensorSpec, pieces: Iterable[memoryview]) -> None:
        """Put the data of a tensor at its place, piece by piece."""
        with self.path.open("r+b") as file:
            file.seek(self._shard.layout.offsets[spec.name])
            for piece in pieces:
                write_data(file, piece)

    def read(self, spec: TensorSpec) -> Iterator[bytes]:
        """What is at the place of a tensor."""
        with self.path.open("rb") as file:
            file.seek(self._shard.layout.offsets[spec.name])
            for start in range(0, spec.bytes, _PIECE):
                yield file.read(min(_PIECE, spec.bytes - start))

    def _begun(self) -> bool:
        if not self.path.is_file() or self.path.stat().st_size != self._shard.layout.size:
            return False
        with self.path.open("rb") as file:
            return file.read(len(self.header)) == self.header
