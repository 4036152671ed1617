"""The layers in whole numbers that a model holds, one by one, as every format wants them: whole matrices.

A fused layer whose slices have forms of their own is one matrix again where all of them are on one grid.
"""

from dataclasses import dataclass

import torch

from kanna.checkpoint.declared import Declared
from kanna.errors import InputError
from kanna.forms import Form, Int, Rows
from kanna.quant.grid import Codes, Grid
from kanna.runs.source import Source

_OF_CODES = ("codes", "scale", "zero")
_DENSE = "kanna export DIR --format dense --out D2 takes every form"


@dataclass(frozen=True)
class Held:
    """A layer in whole numbers.

    Args:
        path: Of its module in the class.
        prefix: The same in the files.
        grid: What its codes mean.
        m: Outputs.
        n: Inputs.
        bias: Whether it has one.
    """

    path: str
    prefix: str
    grid: Grid
    m: int
    n: int
    bias: bool


def layers_of(source: Source) -> tuple[Held, ...]:
    """Every layer that is not dense.

    Raises:
        InputError: There is none, or one in a form that is no matrix of whole numbers; it is named.
    """
    if not source.forms:
        raise InputError(
            f"{source.name} has no layer in whole numbers",
            "kanna quantize MODEL --bits 4 --out BASE writes one that has",
        )
    return tuple(_held(source, layer) for layer in source.declared.values())


def codes_of(source: Source, layer: Held) -> Codes:
    """Its matrix as it is stored, no code computed anew; the set of scales in use is multiplied in."""
    form, parts = _parts(source, layer)
    codes = [part.codes(tensors, layer.n) for part, tensors in parts]
    if form is None:
        return codes[0]
    return Codes(layer.grid, *(form.gathered([getattr(c, name) for c in codes]) for name in _OF_CODES))


def scales_of(source: Source, layer: Held) -> torch.Tensor:
    """All its scales, as `codes_of` has them, slice after slice; codes are not unpacked for them."""
    return torch.cat([part.scale(tensors) for part, tensors in _parts(source, layer)[1]])


def _parts(source: Source, layer: Held) -> tuple[Rows | None, list[tuple[Int, dict[str, torch.Tensor]]]]:
    """What gathers the slices of a fused layer, and each slice's form and tensors; one where it is whole."""
    module = source.module(layer.path)
    form: Form = module.form  # type: ignore[assignment]
    values = dict(module.state_dict())
    if isinstance(form, Int):
        return None, [(form, values)]
    assert isinstance(form, Rows)
    parts = []
    for number, (_, part) in enumerate(form.parts):
        assert isinstance(part, Int)
        start = f"parts.{number}."
        own = {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
        parts.append((part, own))
    return form, parts


def _held(source: Source, layer: Declared) -> Held:
    sizes = layer.geometry
    if sizes.transposed:
        raise InputError(
            f"{layer.path} is a Conv1D, as in GPT-2; programs that read whole numbers know linear layers",
            _DENSE,
        )
    grid = _grid(layer)
    return Held(layer.path, source.prefix(layer.path), grid, sizes.m, sizes.n, sizes.bias)


def _grid(layer: Declared) -> Grid:
    forms = [part for _, part in layer.form.parts] if isinstance(layer.form, Rows) else [layer.form]
    for form in forms:
        if not isinstance(form, Int):
            inside = "slices of it are" if isinstance(layer.form, Rows) else "it is"
            raise InputError(
                f"{layer.path} is no matrix of whole numbers: {inside} stored in a {form.key} form", _DENSE
            )
    grids = {form.grid for form in forms if isinstance(form, Int)}
    if len(grids) > 1:
        raise InputError(
            f"{layer.path} is one matrix of which slices have other bits or groups than others",
            f"quantise all of it alike; or {_DENSE}",
        )
    return grids.pop()
