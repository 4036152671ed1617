"""What a format is: what it cannot hold, how it is written, and who reads it back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from kanna.checked import tagged_floats
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.side_files import copy_side_files
from kanna.checkpoint.writer import write_json, write_tensors
from kanna.errors import KannaError
from kanna.methods.export.held import Held, codes_of
from kanna.progress import Progress, told
from kanna.quant.grid import Codes, Grid
from kanna.quant.layouts import Shapes
from kanna.runs.source import Source

# Token ids (1, length) -> logits (1, length, vocabulary) in float32.
Logits = Callable[[Tensor], Tensor]


class NotInstalled(KannaError):
    """A package that would read the result is not there, or too old."""


class Target(ABC):
    """One format.

    Attributes:
        name: As it is asked for.
        half: Whether its scales are float16.
        loader: Who reads the result back for `--check`.
    """

    name: ClassVar[str]
    half: ClassVar[bool] = True
    loader: ClassVar[str]

    @abstractmethod
    def refuse(self, source: Source, layers: Sequence[Held]) -> None:
        """Raise InputError, with the layer's name, for what the format cannot hold."""

    @abstractmethod
    def bytes(self, source: Source, layers: Sequence[Held]) -> int:
        """Of the weights that will be written."""

    @abstractmethod
    def write(self, directory: Path, source: Source, layers: Sequence[Held], progress: Progress) -> None:
        """Everything that belongs to the format; memory is that of one layer."""

    @abstractmethod
    def reader(self, directory: Path, source: Source, layers: Sequence[Held]) -> Logits:
        """What was written, as the loader runs it.

        Raises:
            NotInstalled: The loader is not there.
        """


class Layout(Protocol):
    """How a matrix is laid out; see `kanna.quant.layouts`."""

    def shapes(self, grid: Grid, m: int, n: int) -> Shapes: ...

    def tensors(self, codes: Codes) -> dict[str, Tensor]: ...


class Directory(Target):
    """A directory in Hugging Face layout: other tensors for the layers, another word in config.json."""

    layout: ClassVar[Any]

    @abstractmethod
    def declared(self, source: Source, layers: Sequence[Held]) -> Mapping[str, Any]:
        """Keys of config.json that say how the layers are stored."""

    def files(self, source: Source, layers: Sequence[Held]) -> Mapping[str, Mapping[str, Any]]:
        """Further files, as JSON."""
        return {}

    def bytes(self, source: Source, layers: Sequence[Held]) -> int:
        return sum(spec.bytes for spec in self._specs(source, layers))

    def write(self, directory: Path, source: Source, layers: Sequence[Held], progress: Progress) -> None:
        write_tensors(directory, self._specs(source, layers), self._tensors(source, layers, progress))
        config = {
            key: value for key, value in source.checkpoint.config.items() if key != "quantization_config"
        }
        write_json(directory / "config.json", tagged_floats({**config, **self.declared(source, layers)}))
        copy_side_files(source.directory, directory, source.checkpoint.files)
        for name, data in self.files(source, layers).items():
            write_json(directory / name, data)

    def _specs(self, source: Source, layers: Sequence[Held]) -> list[TensorSpec]:
        """Of every tensor, in the order of the source."""
        places: dict[str, list[TensorSpec]] = {}
        for layer in layers:
            first = next(name for name in source.tensors_of(layer.path) if not _is_bias(name, layer))
            places[first] = [
                TensorSpec(f"{layer.prefix}.{suffix}", dtype, shape)
                for suffix, (dtype, shape) in self.layout.shapes(layer.grid, layer.m, layer.n).items()
            ]
        dropped, checkpoint = _dropped(source, layers), source.checkpoint
        specs: list[TensorSpec] = []
        for name in checkpoint.tensors:
            specs += places.get(name, [])
            if name not in dropped:
                specs.append(TensorSpec(name, checkpoint.dtype(name), checkpoint.shape(name)))
        return specs

    def _tensors(
        self, source: Source, layers: Sequence[Held], progress: Progress
    ) -> Iterator[tuple[str, Tensor]]:
        dropped = _dropped(source, layers)
        yield from source.checkpoint.stream(name for name in source.checkpoint.tensors if name not in dropped)
        for layer in told(progress, "export", tuple(layers)):
            for suffix, value in self.layout.tensors(codes_of(source, layer)).items():
                yield f"{layer.prefix}.{suffix}", value


def _dropped(source: Source, layers: Sequence[Held]) -> set[str]:
    """Tensors of the layers but for their biases, which stay as they are."""
    return {name for layer in layers for name in source.tensors_of(layer.path) if not _is_bias(name, layer)}


def _is_bias(name: str, layer: Held) -> bool:
    return name == f"{layer.prefix}.bias"
