"""A set of scales on a model in memory: found by the paths of its modules, laid over, taken away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kanna.checkpoint import scale_journal, scale_sets
from kanna.checkpoint.safetensors_format import Stored
from kanna.checkpoint.scale_records import JOURNAL
from kanna.checkpoint.scale_sets import ScaleSet
from kanna.checkpoint.set_names import BASE, FOLDER
from kanna.errors import InputError
from kanna.forms.integer import CHANGE, IntLinear
from kanna.models.names import aliases

# Asked for in place of a name: the set that the directory says is in use.
ACTIVE = "active.json"


def int_modules(model: nn.Module) -> dict[str, IntLinear]:
    """Module path -> module, of all matrices of whole numbers, those inside other forms included."""
    return {path: module for path, module in model.named_modules() if isinstance(module, IntLinear)}


def chosen(base: Path, scales: str | Path | None) -> Path | None:
    """The folder of the set that is asked for; None for the model as it was quantised.

    Args:
        scales: A name, a folder, `ACTIVE`, or None.

    Raises:
        InputError: There is no such set.
    """
    if isinstance(scales, Path):
        return scales
    name = scale_journal.active(base) if scales == ACTIVE else scales
    return None if name in (None, BASE) else scale_sets.find(base, str(name))


def put_chosen(model: nn.Module, base: Path, scales: str | Path | None) -> None:
    """Lay a set in a model's directory over the model in memory; see `chosen`.

    Raises:
        InputError: The set is damaged, of a newer format, or of another model.
    """
    place = chosen(base, scales)
    put(model, None if place is None else checked(base, place))


def checked(base: Path, place: Path) -> ScaleSet:
    """A set that belongs to the codes in `base`."""
    one = scale_sets.read(place)
    scale_sets.check_codes(one.record, base, f"the set {one.record.name!r}")
    return one


def put(model: nn.Module, one: ScaleSet | None) -> None:
    """Lay a set over a model; None takes away what lies over it.

    Raises:
        InputError: A layer has no change in it, or one of another shape; a change has no layer.
    """
    modules = int_modules(model)
    changes: Mapping[str, Tensor | None] = dict.fromkeys(modules) if one is None else matched(model, one)
    for path, module in modules.items():
        module.change(changes[path])


def matched(model: nn.Module, one: ScaleSet) -> dict[str, Tensor]:
    """Module path in this model -> change.

    Raises:
        InputError: A layer has no change in it, or one of another shape; a change has no layer.
    """
    modules, prefix = int_modules(model), str(getattr(model, "base_model_prefix", "") or "")
    found: dict[str, Tensor] = {}
    for path, change in one.changes.items():
        name = next((alias for alias in aliases(path, prefix) if alias in modules), None)
        if name is not None:
            found[name] = change
        elif not _lacks_head(model):
            raise InputError(f"the set {one.record.name!r} changes {path}, and the model has no such layer")
    for path, module in modules.items():
        if path not in found:
            raise InputError(f"the set {one.record.name!r} has no scales for {path}", "tune it again")
        shape, groups = list(found[path].shape), list(module.weight_scale.shape)
        if shape not in (groups, groups[:1]):
            raise InputError(
                f"the scales of {path} in the set {one.record.name!r} have shape {shape}; "
                f"the layer has {groups}",
                "use it with the model that it was tuned on",
            )
    return found


def learnable(model: nn.Module, granularity: str) -> dict[str, nn.Parameter]:
    """Module path -> d, which is 0 now and learns from here on."""
    found: dict[str, nn.Parameter] = {}
    for path, module in int_modules(model).items():
        scale = module.weight_scale
        module.change(torch.zeros_like(scale[:, 0] if granularity == "channel" else scale), learn=True)
        assert module.scale_change is not None
        found[path] = module.scale_change
    return found


def stored_changes(model: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Make room for changes that a model was saved with while a set lay over it, before it is loaded."""
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    for path, module in int_modules(model).items():
        held = (tensors.get(f"{alias}.{CHANGE}") for alias in aliases(path, prefix))
        stored = next((one for one in held if one is not None), None)
        if stored is not None:
            module.change(torch.zeros(stored.shape))


def has_sets(base: Path) -> bool:
    """Whether a model's directory says which set is in use."""
    return (base / FOLDER / JOURNAL).is_file()


def _lacks_head(model: nn.Module) -> bool:
    """Whether a model is of another class than the one whose paths a set names."""
    config: Any = getattr(model, "config", None)
    named = next(iter(getattr(config, "architectures", None) or ()), None)
    return named is not None and type(model).__name__ != named
