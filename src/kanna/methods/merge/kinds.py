"""Whether layers that stand elsewhere are still of the kind that their weights were trained as.

A configuration may tell kinds of layers by their places: every fourth without rotation, the first three
without experts, windows from the tenth on. What of that can be said of the new places, `composed` says. Here
what transformers makes of the old configuration and of the new one is compared, layer by layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.merge.inputs import Inputs
from kanna.methods.merge.layers import Layers
from kanna.methods.merge.layout import Stack
from kanna.models.names import FileNames

# Attributes that number layers.
_PLACE = re.compile(r"(^|\.)(layer_(idx|id|index|number)|block_index)$")
_PLAIN = (bool, int, float, str, type(None))
_REMEDY = "take layers whose places have the same kind, or merge whole models with models:"
# What a layer is: attributes of its modules by their paths, and their classes.
Kind = Mapping[str, object]


def check_kinds(
    inputs: Inputs, stacks: Mapping[str, Stack], config: Mapping[str, Any], tensors: Collection[str]
) -> None:
    """Compare each layer that has moved with what it was.

    Args:
        stacks: Role -> layers of the output, where they do not stay as they are.
        config: Of the output.
        tensors: Their names in it.

    Raises:
        InputError: A layer would be of another kind, or the output lacks tensors that its class has. Not for
            models that transformers does not know.
    """
    builds = _Builds()
    before = builds.of(inputs.lead.config, inputs.lead.tensors) if stacks else None
    if before is None:
        return
    after = _Build.of(config, tensors)
    for role, stack in stacks.items():
        lead = _of_role(inputs, inputs.first, role)
        kinds = None if lead is None else after.kinds(lead, len(stack))
        for place, now in enumerate(kinds or ()):
            for model, number in stack[place]:
                _compare(now, place, inputs.models[model], number, builds.kinds(inputs, model, role))
    _check_tensors(inputs.lead, before, after)


def _of_role(inputs: Inputs, model: int, role: str) -> Layers | None:
    return next((one for one in inputs.stacks[model] if one.role == role), None)


def _compare(now: Kind, place: int, model: Checkpoint, number: int, kinds: list[Kind] | None) -> None:
    before = now if kinds is None else kinds[number]
    differing = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    if differing:
        key = min(differing, key=lambda one: (one.count("."), one))
        said = f"layer {place} of the merge would be of another kind than layer {number} of {model.name}"
        raise InputError(f"{said}: {_told(key, now)}, not {_told(key, before)}", _REMEDY)


def _told(key: str, kind: Kind) -> str:
    return f"{key} {kind[key]!r}" if key in kind else f"without {key}"


def _check_tensors(lead: Checkpoint, before: _Build, after: _Build) -> None:
    """All that the class has is there, and nothing else, unless the first model was like that."""
    for wrong, said in (("missing", "would lack"), ("unknown", "would hold, which its class has not,")):
        if new := getattr(after, wrong) - getattr(before, wrong):
            raise InputError(f"the merge of layers of {lead.directory} {said} {min(new)}", _REMEDY)


class _Builds:
    """Models without weights; one for each configuration."""

    def __init__(self) -> None:
        self._found: dict[str, _Build | None] = {}
        self._kinds: dict[tuple[int, str], list[Kind] | None] = {}

    def of(self, config: Mapping[str, Any], tensors: Collection[str]) -> _Build | None:
        """None where transformers does not know the model."""
        key = json.dumps([config, sorted(tensors)], sort_keys=True, default=str)
        if key not in self._found:
            try:
                self._found[key] = _Build.of(config, tensors)
            except InputError:
                self._found[key] = None
        return self._found[key]

    def kinds(self, inputs: Inputs, model: int, role: str) -> list[Kind] | None:
        """Of the layers of an input."""
        if (model, role) not in self._kinds:
            layers = _of_role(inputs, model, role)
            built = self.of(inputs.models[model].config, inputs.models[model].tensors)
            self._kinds[model, role] = (
                None if built is None or layers is None else built.kinds(layers, layers.count)
            )
        return self._kinds[model, role]


@dataclass(frozen=True)
class _Build:
    built: nn.Module
    names: FileNames
    _known: dict[str, list[Kind] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Collection[str]) -> _Build:
        from kanna.models.skeleton import configured, skeleton  # takes seconds, and only slices need it

        built = skeleton(configured(config, "the configuration of the merge"))
        return cls(built, FileNames.of(built, tensors))

    @property
    def missing(self) -> set[str]:
        return set(self.names.missing)

    @property
    def unknown(self) -> set[str]:
        return {own for name, own in self.names.stored.items() if name not in self.names.expected}

    def kinds(self, layers: Layers, count: int) -> list[Kind] | None:
        """Of each layer of a stack; None where it is not one list of modules."""
        if layers.prefix not in self._known:
            self._known[layers.prefix] = self._kinds(layers, count)
        return self._known[layers.prefix]

    def _kinds(self, layers: Layers, count: int) -> list[Kind] | None:
        for parameter, name in self.names.stored.items():
            number, _ = layers.parts(name)
            path = parameter.partition(f".{number}.")[0]
            if number is not None and parameter in self.names.expected:
                found = self.built.get_submodule(path)
                whole = isinstance(found, nn.ModuleList) and len(found) == count
                return [_kind(one) for one in found.children()] if whole else None
        return None


def _kind(layer: nn.Module) -> Kind:
    found: dict[str, object] = {}
    for path, module in layer.named_modules():
        before = f"{path}." if path else ""
        found[f"{path} class".strip()] = type(module).__name__
        for name, value in vars(module).items():
            if not name.startswith("_") and not _PLACE.search(name) and _is_plain(value):
                found[f"{before}{name}"] = value
        for name, parameter in module.named_parameters(recurse=False):
            found[f"shape of {before}{name}"] = tuple(parameter.shape)
    return found


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))
