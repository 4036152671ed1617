"""Reading a checkpoint directory: configuration and headers at once, tensors one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from kanna.checked import FETCH_AGAIN, read_json
from kanna.checkpoint.location import locate, model_name
from kanna.checkpoint.safetensors_format import TORCH_DTYPES, Stored, read_header
from kanna.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# With peft installed, transformers follows this file to another model.
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A model directory whose headers were read and found sound; no weight is in memory.

    Args:
        directory: Where it lies.
        name: How it was asked for: the base name of the directory, or the hub id.
        config: What config.json holds.
        tensors: Tensor name -> where it is, in the order of files and of their headers' data.
    """

    directory: Path
    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @classmethod
    def open(cls, model: str | Path) -> Checkpoint:
        """Open a directory, or a hub id that is in the local cache. Nothing is fetched.

        Raises:
            InputError: No such model; no or broken config.json; a pickle checkpoint; a safetensors file
                missing, cut short or damaged; an index that names a missing shard or leaves the directory;
                files that make transformers load other weights than these.
        """
        directory = locate(model)
        _refuse_adapter(directory)
        config = read_json(directory / "config.json")
        _refuse_redirection(directory, config)
        return cls(directory, model_name(model, directory), config, read_headers(weight_files(directory)))

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, in order."""
        return tuple(dict.fromkeys(stored.file for stored in self.tensors.values()))

    @property
    def bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(stored.bytes for stored in self.tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return TORCH_DTYPES[self._stored(name).dtype]

    def raw(self, name: str) -> bytearray:
        """The bytes of one tensor, read from disk now.

        Raises:
            InputError: The file became shorter since its header was read.
        """
        stored = self._stored(name)
        data = bytearray(stored.bytes)
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            if file.readinto(data) != len(data):
                raise InputError(f"{stored.file} ends before its data do", FETCH_AGAIN)
        return data

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, read from disk now; the caller owns it."""
        data, shape, dtype = self.raw(name), self.shape(name), self.dtype(name)
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Values `start` to `stop` of a tensor laid flat, read from disk now; the caller owns them.

        Raises:
            InputError: The file became shorter since its header was read.
        """
        stored, dtype = self._stored(name), self.dtype(name)
        values = torch.empty(stop - start, dtype=dtype)
        data = values.view(torch.uint8).numpy().data
        with stored.file.open("rb") as file:
            file.seek(stored.offset + start * dtype.itemsize)
            if file.readinto(data) != len(data):
                raise InputError(f"{stored.file} ends before its data do", FETCH_AGAIN)
        return values

    def rows(self, name: str, numbers: Sequence[int], columns: int) -> torch.Tensor:
        """Rows of a tensor by their numbers, in that order, read from disk now; the caller owns them.

        Args:
            columns: Values of a row.

        Raises:
            InputError: The file became shorter since its header was read.
        """
        stored, dtype = self._stored(name), self.dtype(name)
        size = columns * dtype.itemsize
        data = bytearray(size * len(numbers))
        view, start = memoryview(data), 0
        with stored.file.open("rb", buffering=0) as file:
            while start < len(numbers):
                end = start + 1
                while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
                    end += 1
                file.seek(stored.offset + numbers[start] * size)
                _fill(file, view[start * size : end * size], stored.file)
                start = end
        values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return values.reshape(len(numbers), columns)

    def stream(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of each of `names`, or of all in order; one tensor in memory at a time."""
        for name in self.tensors if names is None else names:
            yield name, self.tensor(name)

    def _stored(self, name: str) -> Stored:
        if name not in self.tensors:
            raise InputError(f"{self.directory} holds no tensor {name!r}", FETCH_AGAIN)
        return self.tensors[name]


def _refuse_adapter(directory: Path) -> None:
    """Raise InputError for a LoRA adapter, which is no model of its own."""
    told = directory / "adapter_config.json"
    if not told.is_file() or (directory / "config.json").exists():
        return
    base = read_json(told).get("base_model_name_or_path") or "BASE"
    raise InputError(
        f"{directory} is an adapter of {base}, not a model",
        f"merge it first: write {{merge_method: linear, models: [{{model: {base}+{directory}, parameters: "
        "{weight: 1}}]} into merge.yml, then: kanna merge run merge.yml --out DIR",
    )


def _fill(file: RawIOBase, view: memoryview, path: Path) -> None:
    """Read until a buffer is full."""
    while view:
        count = file.readinto(view)
        if not count:
            raise InputError(f"{path} ends before its data do", FETCH_AGAIN)
        view = view[count:]


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a model, in the order of their names; one file goes before an index.

    Raises:
        InputError: There are none, only pickles, or the index is wrong.
    """
    if (directory / SINGLE).is_file():
        return (directory / SINGLE,)
    if (directory / INDEX).is_file():
        return _shards(directory)
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise InputError(
            f"{directory} holds a pickle checkpoint only ({pickles[0]}); kanna reads safetensors",
            "load it with transformers if you trust it, then model.save_pretrained(NEW_DIR)",
        )
    raise InputError(f"{directory} holds neither {SINGLE} nor {INDEX}", "give the directory of a whole model")


def read_headers(files: Iterable[Path]) -> dict[str, Stored]:
    """Tensor name -> where it is, of all `files`, from their headers alone.

    Raises:
        InputError: A file is missing, cut short or damaged, or two files hold the same name; a name that an
            index beside them promises is not there.
    """
    tensors: dict[str, Stored] = {}
    for file in files:
        header = read_header(file)
        if twice := sorted(tensors.keys() & header.keys()):
            raise InputError(f"{file} holds {twice[0]!r}, which another file holds too", FETCH_AGAIN)
        tensors |= header
        _check_index(file, tensors)
    return tensors


def read_pieces(file: Path, sizes: Iterable[int]) -> Iterator[bytearray]:
    """A file from its beginning, in pieces of these sizes.

    Raises:
        InputError: The file became shorter since its header was read.
    """
    with file.open("rb") as stream:
        for size in sizes:
            data = bytearray(size)
            if stream.readinto(data) != size:
                raise InputError(f"{file} ends before its data do", FETCH_AGAIN)
            yield data


def check_finite(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor itself.

    Raises:
        InputError: It holds NaN or infinity; says how many.
    """
    if bad := not_finite(tensor):
        raise NotFinite(name, bad, tensor.numel()).error()
    return tensor


def not_finite(tensor: torch.Tensor) -> int:
    """How many of its values are NaN or infinite."""
    if not tensor.is_floating_point():
        return 0
    wide = tensor.float() if tensor.itemsize == 1 else tensor  # torch has no isfinite for eight bits
    # NaN and infinity go through to the ends, which are found in a fraction of the time.
    if not wide.numel() or all(end.isfinite() for end in torch.aminmax(wide)):
        return 0
    return tensor.numel() - int(wide.isfinite().sum())


@dataclass(frozen=True)
class NotFinite:
    """A tensor that holds `count` NaN or infinite values of `values`."""

    name: str
    count: int
    values: int

    def error(self) -> InputError:
        return InputError(
            f"{self.name} holds {self.count} NaN or infinite values of {self.values}",
            "fetch the model again: its weights are damaged",
        )


def refuse_quantized(config: Mapping[str, Any], model: str | Path) -> None:
    """Raise InputError when the weights of a model are not plain numbers any more.

    Args:
        config: Its config.json.
        model: How to name it in the message.
    """
    declared = config.get("quantization_config")
    if declared is None:
        return
    method = declared.get("quant_method", "unnamed") if isinstance(declared, Mapping) else "unnamed"
    if method == "kanna":
        remedy = "start from its base, or write dense weights first: kanna export DIR --format dense --out D2"
        raise InputError(f"{model} is already compressed by kanna", remedy)
    raise InputError(
        f"{model} is already quantized (quantization_config of {method!r})",
        "start from the model before quantization; kanna import takes GPTQ and compressed-tensors over",
    )


def refuse_eight_bits(checkpoint: Checkpoint, model: str | Path) -> None:
    """Raise InputError where a weight is stored in eight bits: its scales, if it has any, are not known here.

    Args:
        model: How to name it in the message.
    """
    for name, stored in checkpoint.tensors.items():
        dtype = TORCH_DTYPES[stored.dtype]
        if dtype.is_floating_point and dtype.itemsize == 1 and len(stored.shape) > 1:
            raise InputError(
                f"{model} is already quantized: {name} is stored in eight bits ({stored.dtype})",
                "start from the model before quantization, or save it in bfloat16 with transformers first",
            )


def _refuse_redirection(directory: Path, config: Mapping[str, Any]) -> None:
    """What was read here and what transformers loads must be the same files."""
    if config.get("transformers_weights") is not None:
        raise InputError(
            f"{directory / 'config.json'} names other weights: 'transformers_weights'",
            f"remove that key if {SINGLE} or {INDEX} is the model that you mean",
        )
    if (directory / _ADAPTER).is_file():
        raise InputError(
            f"{directory} holds {_ADAPTER}: it may stand for another model than its own files",
            "merge the adapter into its model first, or move its files away",
        )


def _shards(directory: Path) -> tuple[Path, ...]:
    index = directory / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no 'weight_map' of tensor names to files", FETCH_AGAIN)
    names = sorted({_shard_name(index, name) for name in weight_map.values()})
    for name in names:
        if not (directory / name).is_file():
            raise InputError(f"{index} names {name}, which is missing", "fetch the missing file")
    return tuple(directory / name for name in names)


def _shard_name(index: Path, name: object) -> str:
    if not isinstance(name, str) or not name.endswith(".safetensors") or "\0" in name:
        raise InputError(f"{index} names {name!r}, which is not a safetensors file", FETCH_AGAIN)
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or PureWindowsPath(name).drive:
        raise InputError(
            f"{index} names {name!r}, which lies outside the directory",
            "do not use this checkpoint unless you know who wrote it",
        )
    return name


def _check_index(file: Path, tensors: Mapping[str, Stored]) -> None:
    """The names that an index promises in `file` are in its header."""
    index = file.parent / INDEX
    if file.name == SINGLE or not index.is_file():
        return
    promised = {name for name, shard in read_json(index).get("weight_map", {}).items() if shard == file.name}
    if missing := sorted(promised - tensors.keys()):
        raise InputError(f"{index} places {missing[0]!r} in {file.name}, which does not hold it", FETCH_AGAIN)
