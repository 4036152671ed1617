"""The configuration of a model whose layers come from several places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kanna.errors import InputError
from kanna.methods.merge.inputs import Inputs, settled
from kanna.methods.merge.layers import counted, per_layer
from kanna.methods.merge.layout import Stack

# GPT-Neo's pattern, of which it makes the list.
_PATTERN, _SPREAD = "attention_types", "attention_layers"


def composed(inputs: Inputs, stack: Stack | None) -> dict[str, Any]:
    """The first model's configuration, with the number of layers and what it says of each of them.

    Args:
        stack: Layers of the output; None where they stay as they are.

    Raises:
        InputError: Layers that are merged with each other differ in what a configuration says of them.
    """
    config = {**inputs.lead.config}
    if stack is None:
        return config
    sections = [_section(model.config, settled(model)) for model in inputs.models]
    found = counted(config)
    mine, count = sections[inputs.first]
    own = dict(config[found.section]) if found and found.section else config
    for key in per_layer(mine, count):
        own[key] = _of_layers(key, inputs, sections, stack)
    if _PATTERN in own and _SPREAD in own:
        own[_PATTERN] = [[own[_SPREAD], 1]]
    if found is not None:
        own[found.key] = len(stack)
        if found.section:
            config[found.section] = own
    return config


def _section(config: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """The part of a configuration that tells of the layers, and how many there are."""
    found = counted(config)
    if found is None:
        return {}, 0
    return (whole.get(found.section, {}) if found.section else whole), found.count


def _of_layers(
    key: str, inputs: Inputs, sections: list[tuple[Mapping[str, Any], int]], stack: Stack
) -> list[Any]:
    """One entry for each layer of the output."""
    result = []
    for place, layer in enumerate(stack):
        said = [(model, sections[model][0].get(key), number) for model, number in layer]
        values = [
            given[number] if isinstance(given, list | tuple) and number < len(given) else None
            for _, given, number in said
        ]
        for (model, _, number), value in zip(said, values, strict=True):
            if value != values[0]:
                first = inputs.models[said[0][0]].name
                raise InputError(
                    f"layer {place} of the merge: {key} is {value!r} for layer {number} of "
                    f"{inputs.models[model].name} and {values[0]!r} for layer {said[0][2]} of {first}",
                    "merge layers of one kind with each other",
                )
        result.append(values[0])
    return result
