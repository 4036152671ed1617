"""The safetensors container: eight bytes of header length, a JSON header, then the data.

The safetensors library writes a file only from tensors that are all in memory and does not tell where in a
file a tensor lies; streaming needs both. Source: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kanna.checked import FETCH_AGAIN
from kanna.errors import InputError

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}

# The bound of the safetensors library.
_LONGEST_HEADER = 100_000_000
# Beyond it torch's own counts overflow, even where one size is 0.
_LARGEST_COUNT = 2**60


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is to be written: its name, torch dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `bytes` bytes from `offset`, of safetensors dtype `dtype`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class Layout:
    """The header of a file to be written, and where each tensor's data go in it."""

    header: bytes
    offsets: Mapping[str, int]
    size: int


def layout(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> Layout:
    """Lay tensors out as the safetensors library does: widest dtype first, then by name; all aligned."""
    ordered = sorted(specs, key=lambda s: (-s.dtype.itemsize, s.name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end, starts = 0, {}
    for spec in ordered:
        starts[spec.name] = end
        span = [end, end := end + spec.bytes]
        entries[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": span,
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return Layout(header, {name: len(header) + s for name, s in starts.items()}, len(header) + end)


def read_header(file: Path) -> dict[str, Stored]:
    """Tensor name -> where it is, in the order of the data. Every byte of the file is accounted for.

    Raises:
        InputError: The file is missing, cut short, or its header is not a sound one.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else None
            if length is None or length > min(size - 8, _LONGEST_HEADER):
                raise _damaged(file, "is cut short, or the length of its header is wrong")
            text = stream.read(length)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", "fetch or write it again") from error
    return _entries(file, _parse(file, text), 8 + length, size)


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"has a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(file, "has a header that is not a JSON object")
    # Lone surrogates, which JSON can escape but no file or terminal takes.
    if any("\ud800" <= sign <= "\udfff" for name in header for sign in name):
        raise _damaged(file, "has a tensor name that is not valid text")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(file, "has metadata that are not text")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _entries(file: Path, header: Mapping[str, Any], start: int, size: int) -> dict[str, Stored]:
    entries = {name: _entry(file, name, entry, start) for name, entry in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].offset, item[1].bytes)))
    end = start
    for name, stored in ordered.items():
        if stored.offset != end:
            raise _damaged(file, f"has data of {name!r} that overlap others or leave a gap")
        end += stored.bytes
    if end != size:
        raise _damaged(file, f"holds {size} bytes, but its header describes {end}")
    return ordered


def _entry(file: Path, name: str, entry: object, start: int) -> Stored:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"has a header entry of {name!r} that is not sound")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TORCH_DTYPES:
        raise _damaged(file, f"has {name!r} of dtype {dtype!r}, which kanna does not know")
    if not _whole_numbers(shape) or not _whole_numbers(span) or len(span) != 2:
        raise _damaged(file, f"has {name!r} with a shape or place that is not whole numbers")
    if math.prod(max(1, size) for size in shape) >= _LARGEST_COUNT:
        raise _damaged(file, f"has {name!r} with an impossible shape {shape}")
    count = math.prod(shape) * TORCH_DTYPES[dtype].itemsize
    if span[1] - span[0] != count:
        raise _damaged(
            file, f"has {name!r} of {count} bytes by its shape and {span[1] - span[0]} by its place"
        )
    return Stored(file, dtype, tuple(shape), start + span[0], count)


def _whole_numbers(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)


def _damaged(file: Path, what: str) -> InputError:
    return InputError(f"{file} {what}", FETCH_AGAIN)
