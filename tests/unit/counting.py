"""How often a run opens, hashes and reads its models, and reads its tasks.

Files of weights that Python reads are watched where every reading begins, in `open`, and their tensors' bytes
are counted; transformers maps them unseen, so that a `from_pretrained` counts as one reading of all. Works on
any version of kanna that has `Checkpoint.open` and `lineage.base_hash`, so that before and after compare.
"""

import builtins
import contextlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint


@dataclass
class Model:
    """Of one model directory.

    Attributes:
        bytes: Of its tensors.
        opens: Calls of Checkpoint.open.
        hashes: Passes that hash its weights, by whatever function; part of the files counts as that part.
        loads: Calls of from_pretrained.
        read: Bytes of tensors read, loads included.
    """

    bytes: int = 0
    opens: int = 0
    hashes: float = 0.0
    loads: int = 0
    read: int = 0

    @property
    def readings(self) -> float:
        """How many times all its bytes were read."""
        return self.read / max(1, self.bytes)


@dataclass
class Counts:
    """By resolved path: of model directories, and how often each watched file was opened."""

    models: dict[Path, Model] = field(default_factory=dict)
    files: dict[Path, int] = field(default_factory=dict)

    def of(self, directory: str | Path) -> Model:
        return self.models.setdefault(Path(directory).resolve(), Model())


class _Watched:
    """A file of weights opened for reading: what is read beyond its header is counted."""

    def __init__(self, file: Any, path: Path, counts: Counts) -> None:
        self._file, self._counts = file, counts
        self._of = counts.of(path.parent)
        head = file.read(8)
        self._data = 8 + struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        found: bytes = self._file.read(size)
        self._count(start, len(found))
        return found

    def readinto(self, buffer: Any) -> int:
        start = self._file.tell()
        found: int = self._file.readinto(buffer)
        self._count(start, found)
        return found

    def _count(self, start: int, size: int) -> None:
        self._of.read += max(0, start + size - max(start, self._data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextlib.contextmanager
def counted(*files: str | Path) -> Iterator[Counts]:
    """Within the block, count what is read of models, and how often each of `files` is opened."""
    counts = Counts(files={Path(file).resolve(): 0 for file in files})
    with contextlib.ExitStack() as stack:
        opening = _opening(counts, io.open)
        for holder, name in ((io, "open"), (builtins, "open")):
            stack.enter_context(_put(holder, name, opening))
        stack.enter_context(_put(Checkpoint, "open", classmethod(_checkpoints(counts))))
        load = transformers.PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
        stack.enter_context(
            _put(transformers.PreTrainedModel, "from_pretrained", classmethod(_loading(counts, load)))
        )
        _watch_hashes(counts, stack)
        yield counts
    for directory, one in counts.models.items():
        one.bytes = _data_bytes(directory)


def _opening(counts: Counts, original: Callable[..., Any]) -> Callable[..., Any]:
    def opened(file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        found = original(file, mode, *args, **named)
        if isinstance(file, str | os.PathLike) and not set(mode) & set("wax+"):
            path = Path(file).resolve()
            if path in counts.files:
                counts.files[path] += 1
            if path.suffix == ".safetensors" and (path.parent / "config.json").exists():
                return _Watched(found, path, counts)
        return found

    return opened


def _checkpoints(counts: Counts) -> Callable[..., Checkpoint]:
    original = Checkpoint.open.__func__  # type: ignore[attr-defined]

    def opened(cls: type[Checkpoint], model: str | Path) -> Checkpoint:
        found: Checkpoint = original(cls, model)
        counts.of(found.directory).opens += 1
        return found

    return opened


def _loading(counts: Counts, original: Callable[..., Any]) -> Callable[..., Any]:
    def load(cls: type, model: Any, *args: Any, **named: Any) -> Any:
        one = counts.of(model)
        one.loads += 1
        one.read += _data_bytes(Path(model))
        return original(cls, model, *args, **named)

    return load


def _watch_hashes(counts: Counts, stack: contextlib.ExitStack) -> None:
    """A function that hashes and calls another is counted once."""
    depth = 0

    def watched(original: Callable[..., Any], note: Callable[[Any], None]) -> Callable[..., Any]:
        def run(first: Any, *args: Any, **named: Any) -> Any:
            nonlocal depth
            if not depth:
                note(first)
            depth += 1
            try:
                return original(first, *args, **named)
            finally:
                depth -= 1

        return run

    def whole(checkpoint: Checkpoint) -> None:
        counts.of(checkpoint.directory).hashes += 1

    def one_file(path: Path) -> None:
        if path.suffix == ".safetensors":
            counts.of(path.parent).hashes += 1 / len(list(path.parent.glob("*.safetensors")))

    for name, note in (("scan", whole), ("base_hash", whole), ("file_digest", one_file)):
        if hasattr(lineage, name):
            stack.enter_context(_put(lineage, name, watched(getattr(lineage, name), note)))


@contextlib.contextmanager
def _put(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = holder.__dict__[name]
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def _data_bytes(directory: Path) -> int:
    """Bytes of tensors in the files of a directory; 0 where it is gone."""
    return sum(_data_of(file) for file in directory.glob("*.safetensors"))


def _data_of(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    header.pop("__metadata__", None)
    return max((entry["data_offsets"][1] for entry in header.values()), default=0)
