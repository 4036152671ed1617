"""The configuration of a model whose layers come from several places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kanna.errors import InputError
from kanna.methods.merge.inputs import Inputs, settled
from kanna.methods.merge.layers import DECODER, NUMBERS, Counted, Layers, counts_in, per_layer, section_of
from kanna.methods.merge.layout import Stack

# GPT-Neo's pattern, of which it makes the list.
_PATTERN, _SPREAD = "attention_types", "attention_layers"


def composed(inputs: Inputs, stacks: Mapping[str, Stack]) -> dict[str, Any]:
    """The first model's configuration, with the numbers of layers and what it says of each of them.

    Args:
        stacks: Role -> layers of the output, where they do not stay as they are.

    Raises:
        InputError: Layers that are merged with each other differ in what a configuration says of them.
    """
    config = {**inputs.lead.config}
    whole = [settled(model) for model in inputs.models] if stacks else []
    for role, stack in stacks.items():
        told = next(one for one in inputs.stacks[inputs.first] if one.role == role).told[0]
        own = dict(section_of(config, told.section))
        own |= _unsaid(inputs.stacks[inputs.first], told, own)
        own |= _Composing(inputs, whole, role, stack).entries(own)
        config = {**config, told.section: own} if told.section else own
    return config


def _unsaid(stacks: Sequence[Layers], moved: Counted, own: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of other layers that a file leaves to be the one that changes (the decoder's of T5)."""
    first = [one.told[0] for one in stacks if one.told]
    return {
        one.key: one.count
        for one in first
        if one.section == moved.section and one.key != moved.key and one.key not in own
    }


class _Composing:
    """What the part of a configuration says that is of one stack of layers.

    Args:
        whole: The configurations of all models, with all defaults.
    """

    def __init__(self, inputs: Inputs, whole: Sequence[Mapping[str, Any]], role: str, stack: Stack) -> None:
        self._inputs, self._role, self._stack = inputs, role, stack
        found = [next((one for one in stacks if one.role == role), None) for stacks in inputs.stacks]
        self._sections = [
            section_of(config, one.told[0].section) if one is not None else {}
            for config, one in zip(whole, found, strict=True)
        ]
        lead = found[inputs.first]
        assert lead is not None
        self._lead: Layers = lead
        self._others = [one.role for one in inputs.stacks[inputs.first] if one.role != role]

    def entries(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Keys that are others than before.

        Args:
            own: What the first model's file says, without defaults.
        """
        section = self._sections[self._inputs.first]
        lists = [key for key in per_layer(section, self._lead.count) if self._mine(key)]
        found: dict[str, Any] = {key: self._of_layers(key) for key in lists}
        found |= {key: self._numbers(key) for key in NUMBERS if isinstance(section.get(key), list | tuple)}
        if _PATTERN in section and _SPREAD in found:
            found[_PATTERN] = [[found[_SPREAD], 1]]
        count = len(self._stack)
        counts = () if self._role == DECODER else counts_in(own, self._lead.count)
        return {**found, **dict.fromkeys((self._lead.told[0].key, *counts), count)}

    def _mine(self, key: str) -> bool:
        """Whether a list is of this stack, and not of another that the same part tells of."""
        return not any(role in key for role in self._others)

    def _of_layers(self, key: str) -> list[Any]:
        """One entry for each layer of the output."""
        return [self._agreed(key, place, self._entry(key)) for place in range(len(self._stack))]

    def _entry(self, key: str) -> Any:
        def entry(model: int, number: int) -> Any:
            given = self._sections[model].get(key)
            return given[number] if isinstance(given, list | tuple) and number < len(given) else None

        return entry

    def _numbers(self, key: str) -> list[int]:
        """Where the layers are now whose numbers a list holds."""

        def listed(model: int, number: int) -> bool:
            return number in (self._sections[model].get(key) or ())

        return [place for place in range(len(self._stack)) if self._agreed(key, place, listed)]

    def _agreed(self, key: str, place: int, said: Any) -> Any:
        """What all models say of the layers that one of the output is merged from."""
        layer = self._stack[place]
        values = [said(model, number) for model, number in layer]
        for (model, number), value in zip(layer, values, strict=True):
            if value != values[0]:
                names = [self._inputs.models[one].name for one in (model, layer[0][0])]
                raise InputError(
                    f"layer {place} of the merge: {key} is {value!r} for layer {number} of {names[0]} and "
                    f"{values[0]!r} for layer {layer[0][1]} of {names[1]}",
                    "merge layers of one kind with each other",
                )
        return values[0]
