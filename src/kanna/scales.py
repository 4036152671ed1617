"""Sets of scales from Python: laid over a model in memory, and on the shelf of its directory.

import kanna

model, tokenizer = kanna.load("BASE")
kanna.scales.use(model, "law")            # until something else is used
with kanna.scales.use(model, "support"):  # until the block ends
    ...
with kanna.scales.mixed(model, ["law", None]):  # row 0 of a batch with law, row 1 as it was quantised
    ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from kanna.checkpoint import applied, scale_sets
from kanna.checkpoint.location import locate
from kanna.checkpoint.set_names import BASE
from kanna.errors import InputError
from kanna.forms.integer import IntLinear
from kanna.runs import shelf
from kanna.runs.shelf import activate, diff, export, listed, remove, rollback, shown, take, verify

__all__ = [
    "activate",
    "diff",
    "export",
    "listed",
    "mixed",
    "remove",
    "rollback",
    "save",
    "shown",
    "take",
    "trainable",
    "use",
    "verify",
]


class Used:
    """What lies over a model; as a context manager it goes when the block ends."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo

    def __enter__(self) -> Used:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo()


def use(model: nn.Module, name: str | None, base: str | Path | None = None) -> Used:
    """Lay a set of scales over a loaded model; nothing else is read or moved.

    Args:
        name: Of the set; None or "base" for the model as it was quantised.
        base: The model's directory; by default the one that it was loaded from.

    Raises:
        InputError: There is no such set, it is of another model, or the model was cast.
    """
    modules = applied.int_modules(model)
    used = _undoing(modules.values())
    wanted = None if name in (None, BASE) else str(name)
    place = _directory(model, base) if wanted is not None or base is not None else Path()
    applied.put_chosen(model, place, wanted)
    for module in modules.values():
        module.by_row(None)
    return used


def mixed(model: nn.Module, names: Sequence[str | None], base: str | Path | None = None) -> Used:
    """One set for each row of a batch, in one pass: sets of channels only multiply outputs.

    Args:
        names: One for each row; None or "base" for the model as it was quantised.
        base: The model's directory; by default the one that it was loaded from.

    Raises:
        InputError: A set is not there, of another model, or of groups.
    """
    if not names:
        raise InputError("no row has a set", "give one for each row of the batch")
    place, modules = _directory(model, base), applied.int_modules(model)
    sets = {name: _of_channels(model, place, name) for name in {*names} - {None, BASE}}
    used = _undoing(modules.values())
    for path, module in modules.items():
        zeros = torch.zeros(module.out_features)
        rows = [sets[name][path] if name in sets else zeros for name in names]
        module.change(None)
        module.by_row(torch.stack([row.cpu() for row in rows]))
    return used


def trainable(
    model: nn.Module, granularity: str = "channel", keep_inputs: bool = False
) -> dict[str, nn.Parameter]:
    """Prepare a loaded model for a training loop of your own: nothing but scales is learnt from here on.

    What is learnt is d in s (1 + d), 0 at first, float32; AdamW without decay at a rate of 1e-2 does well.

    Args:
        granularity: "channel", a number for each row of a matrix, or "group".
        keep_inputs: Keep inputs of layers for the way back in place of outputs: for models that change these
            in place, as PyTorch says then.

    Returns:
        Module path -> d, for an optimiser. `save` puts what was learnt on the shelf.

    Raises:
        InputError: The model has no whole numbers, was cast, or the granularity is neither.
    """
    if granularity not in ("channel", "group"):
        raise InputError(f"granularity {granularity!r}", "give channel or group")
    for module in _modules(model).values():
        module.keeps_inputs = keep_inputs
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return applied.learnable(model, granularity)


def save(model: nn.Module, name: str, base: str | Path | None = None, **facts: Any) -> Path:
    """Put what lies over a model on the shelf of its directory, as a set.

    Args:
        base: The model's directory; by default the one that it was loaded from.
        facts: Further fields of the record, such as `data_hash`, `config`, `scores`.

    Returns:
        The folder of the set.

    Raises:
        InputError: Nothing lies over the model, it is of another directory, or the name is taken.
    """
    modules, place = _modules(model), _directory(model, base)
    changes = {path: module.scale_change for path, module in modules.items()}
    held = {path: change for path, change in changes.items() if change is not None}
    if len(held) < len(modules):
        raise InputError("no set of scales lies over this model", "train it, or use a set, first")
    _refuse_other_scales(modules, place)
    return shelf.keep(place, name, held, **facts)


def _undoing(modules: Iterable[IntLinear]) -> Used:
    """What gives modules back what lies over them now."""
    before = [(module, module.scale_change, module.row_changes) for module in modules]

    def undo() -> None:
        for module, change, rows in before:
            module.scale_change, module.row_changes = change, rows

    return Used(undo)


def _modules(model: nn.Module) -> dict[str, Any]:
    found = applied.int_modules(model)
    if not found:
        raise InputError("this model has no layer of whole numbers", "load one that kanna quantize wrote")
    return dict(found)


def _directory(model: Any, base: str | Path | None) -> Path:
    """Where the files of a loaded model lie."""
    named = base if base is not None else getattr(model, "name_or_path", "")
    if not named:
        raise InputError("it is not known which directory this model is of", "name it as base=")
    return locate(named)


def _of_channels(model: nn.Module, place: Path, name: str | None) -> dict[str, Tensor]:
    one = applied.checked(place, scale_sets.find(place, str(name)))
    if one.record.granularity != "channel":
        raise InputError(
            f"the set {name!r} is of groups, which do not only multiply outputs",
            "tune it with --granularity channel, or run its rows apart",
        )
    return applied.matched(model, one)


def _refuse_other_scales(modules: dict[str, Any], place: Path) -> None:
    """Raise InputError where the scales in memory are not those of the directory."""
    from kanna.runs.source import Source

    source = Source.open(place)
    for path, module in modules.items():
        outer = next((one for one in source.declared if f"{path}.".startswith(f"{one}.")), None)
        if outer is None:
            raise InputError(f"{place} has no matrix {path} of whole numbers", "name the right base=")
        inner: Any = source.module(outer).get_submodule(path.removeprefix(outer).removeprefix("."))
        if not torch.equal(inner.weight_scale, module.weight_scale.cpu()):
            raise InputError(f"the scales of {path} are not those of {place}", "name the right base=")
