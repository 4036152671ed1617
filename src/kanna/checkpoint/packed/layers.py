"""The layers that a directory holds packed, found by their tensors and fitted into the class of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.models.names import FileNames
from kanna.quant.grid import Codes, Grid

FETCH = "fetch the model again, or start from the model before quantization"


@dataclass(frozen=True)
class Layer:
    """A linear layer as others packed it.

    Args:
        path: In the class.
        prefix: In the files.
        m: Outputs.
        n: Inputs.
    """

    path: str
    prefix: str
    m: int
    n: int


class Packing(Protocol):
    """What one format declares, and how its tensors are read."""

    @property
    def format(self) -> str: ...

    @property
    def marker(self) -> str:
        """Suffix of the tensor that every packed layer has."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of all tensors that a packed layer may have, its bias apart."""
        ...

    def grid(self, layer: Layer) -> Grid:
        """What its codes mean, as config.json says."""
        ...

    def codes(self, layer: Layer, held: Mapping[str, Tensor]) -> Codes:
        """The matrix.

        Raises:
            InputError: It would not mean the same here; the layer is named.
        """
        ...


def find(checkpoint: Checkpoint, model: nn.Module, marker: str) -> tuple[Layer, ...]:
    """Every layer of `model` that the files hold packed, by the tensor that each of them has.

    Raises:
        InputError: There is none, or one that the class does not have as a linear layer.
    """
    prefixes = [name.removesuffix(f".{marker}") for name in checkpoint.tensors if name.endswith(f".{marker}")]
    names = FileNames.of(model, [*checkpoint.tensors, *(f"{prefix}.weight" for prefix in prefixes)])
    found = {
        prefix: Layer(path, prefix, module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and (prefix := names.module(path)) in set(prefixes)
    }
    if not prefixes:
        raise InputError(f"{checkpoint.directory} holds no tensor {marker}", FETCH)
    if lost := [prefix for prefix in prefixes if prefix not in found]:
        raise InputError(
            f"{lost[0]} is packed in the files, and {type(model).__name__} has no linear layer for it",
            "kanna takes linear layers over, and no experts that the class stacks",
        )
    return tuple(found.values())


def stored(checkpoint: Checkpoint, layer: Layer, suffixes: Sequence[str]) -> dict[str, Tensor]:
    """Its tensors by their suffixes, those that there are."""
    names = {suffix: f"{layer.prefix}.{suffix}" for suffix in suffixes}
    return {suffix: checkpoint.tensor(name) for suffix, name in names.items() if name in checkpoint.tensors}


def fitting(layer: Layer, held: Mapping[str, Tensor], shapes: Mapping[str, Any]) -> None:
    """Raise InputError where a tensor is missing, or not of the dtype and shape that it must have.

    Args:
        shapes: See `kanna.quant.layouts`; scales may be of any floating dtype.
    """
    for suffix, (dtype, shape) in shapes.items():
        tensor = held.get(suffix)
        if tensor is None:
            raise InputError(f"the files hold no tensor {layer.prefix}.{suffix}", FETCH)
        same = tensor.dtype == dtype or (dtype.is_floating_point and tensor.dtype.is_floating_point)
        if tuple(tensor.shape) != shape or not same:
            raise InputError(
                f"{layer.prefix}.{suffix} is {tensor.dtype} {list(tensor.shape)}, and would be {dtype} "
                f"{list(shape)} by what config.json says of bits and groups",
                "packings of older versions differ: save it again with a newer version of what wrote it",
            )


def whole(layer: Layer, grid: Grid) -> Grid:
    """The grid itself, if its groups divide the inputs of the layer."""
    if grid.group is not None and layer.n % grid.group:
        raise InputError(f"{layer.path} has {layer.n} inputs, no multiple of the group {grid.group}", FETCH)
    return grid


def setting(config: Mapping[str, Any], key: str, allowed: Sequence[Any], where: str) -> Any:
    """A value of a configuration that must be one of a few; a key that is missing counts as None.

    Raises:
        InputError: Another value.
    """
    value = config.get(key)
    if value not in allowed:
        known = ", ".join(str(each) for each in allowed if each is not None)
        raise InputError(f"{where} says {key}: {value!r}, and kanna takes {known or 'none'} over", FETCH)
    return value
