"""What a format cannot hold, refused by the name of the layer before anything is written."""

from collections.abc import Collection, Sequence

from kanna.errors import InputError
from kanna.methods.export.held import Held
from kanna.runs.source import Source

_QUANTISE = "quantise again with settings that it holds, or use another --format"


def whole_groups(layers: Sequence[Held], target: str) -> None:
    """Groups that divide the inputs of a layer: no format has a short last group."""
    for layer in layers:
        size = layer.grid.group
        if size is not None and layer.n % size:
            raise InputError(
                f"{target} holds whole groups only: {layer.path} has {layer.n} inputs, no multiple of {size}",
                f"quantise with --group {_divisor(layer.n, size)} or channel",
            )


def bits_among(layers: Sequence[Held], allowed: Collection[int], target: str) -> None:
    for layer in layers:
        if layer.grid.bits not in allowed:
            known = ", ".join(map(str, sorted(allowed)))
            raise InputError(f"{target} holds {known} bits: {layer.path} has {layer.grid.bits}", _QUANTISE)


def groups_among(layers: Sequence[Held], allowed: Collection[int], target: str) -> None:
    for layer in layers:
        size = layer.grid.size(layer.n)
        if layer.grid.group not in allowed:
            known = ", ".join(map(str, sorted(allowed)))
            found = f"one of {size} inputs a row" if layer.grid.group is None else f"groups of {size}"
            raise InputError(f"{target} holds groups of {known} inputs: {layer.path} has {found}", _QUANTISE)


def multiples(layers: Sequence[Held], inputs: int, outputs: int, target: str) -> None:
    """Sizes of layers that fill whole words."""
    for layer in layers:
        for what, size, of in (("inputs", layer.n, inputs), ("outputs", layer.m, outputs)):
            if size % of:
                raise InputError(
                    f"{target} holds multiples of {of} {what}: {layer.path} has {size}",
                    "use another --format",
                )


def one_grid(layers: Sequence[Held], target: str) -> None:
    """The same bits, group and symmetry everywhere."""
    first = layers[0]
    for layer in layers:
        if layer.grid != first.grid:
            raise InputError(
                f"{target} holds one kind of whole numbers a model: {layer.path} and {first.path} differ in "
                "bits, group or symmetry",
                _QUANTISE,
            )


def all_of_them(source: Source, layers: Sequence[Held], target: str) -> None:
    """No layer of a block left dense."""
    held = {layer.path for layer in layers}
    for matrix in source.inventory.matrices:
        if matrix.module not in held:
            raise InputError(
                f"{target} holds every layer of a block in whole numbers: {matrix.module} is dense",
                "quantise all of them, or use --format compressed-tensors",
            )


def no_experts(source: Source, target: str) -> None:
    """No matrix that cannot be whole numbers, as of stacked experts: programs would look for them there."""
    for matrix in source.inventory.refused:
        raise InputError(
            f"{target} would look for whole numbers in {matrix.tensor}, which stays dense: {matrix.refused}",
            "kanna export DIR --format dense --out D2",
        )


def one_stack(source: Source, target: str) -> None:
    if source.inventory.has_decoder_apart:
        raise InputError(
            f"{source.inventory.architecture} has two stacks, which kanna does not write for {target}",
            "kanna export DIR --format dense --out D2",
        )


def _divisor(n: int, size: int) -> int:
    """The largest group up to `size` that divides n, of those that formats hold if there is one."""
    usual = [group for group in (128, 64, 32) if group <= size and n % group == 0]
    return usual[0] if usual else next(group for group in range(size, 0, -1) if n % group == 0)
