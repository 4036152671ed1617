"""Which layer a tensor lies in, by its name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_NUMBERED = re.compile(r"^((?:[^.]+\.)*?)(\d+)\.")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_TEXT = "text_config"
# Lists of other things may happen to be as long.
_OF_LAYERS = re.compile(r"layer|block|attn|attention|rope|window|mlp|expert|head")
# What transformers spreads over the layers, by a pattern, where there is no list of them.
SPREAD = ("attention_types", "max_window_layers")


@dataclass(frozen=True)
class Layers:
    """One stack of layers.

    Args:
        prefix: Of the names of their tensors, before the number.
        count: How many there are.
    """

    prefix: str
    count: int

    def name(self, number: int, rest: str) -> str:
        """Of a tensor, by what stands behind the number of its layer."""
        return f"{self.prefix}{number}.{rest}"

    def parts(self, tensor: str) -> tuple[int | None, str]:
        """The number of its layer and what stands behind it; None and all of it outside of layers."""
        number = self.number(tensor)
        return number, tensor if number is None else tensor[len(self.prefix) + len(str(number)) + 1 :]

    def number(self, tensor: str) -> int | None:
        """None for a tensor outside of layers."""
        found = _NUMBERED.match(tensor)
        return int(found[2]) if found is not None and found[1] == self.prefix else None


@dataclass(frozen=True)
class Counted:
    """How many layers a configuration tells of.

    Args:
        section: Key of the configuration within it that says so; empty for the configuration itself.
        key: That says so.
        count: The number.
    """

    section: str
    key: str
    count: int


def counted(config: Mapping[str, Any]) -> Counted | None:
    """The number of layers that a configuration names, or that of its text; None where neither does."""
    for section in ("", _TEXT):
        inner = config.get(section) if section else config
        if isinstance(inner, Mapping):
            for key in _COUNTS:
                if isinstance(inner.get(key), int):
                    return Counted(section, key, inner[key])
    return None


def layer_keys(config: Mapping[str, Any], settled: Mapping[str, Any]) -> set[str]:
    """Keys of a configuration that tell the number of layers, or something of each of them.

    Args:
        settled: The configuration with all defaults.
    """
    found = counted(config) or counted(settled)
    if found is None:
        return set()
    inner = settled.get(found.section, {}) if found.section else settled
    before = f"{found.section}." if found.section else ""
    lists = {f"{before}{key}" for key in per_layer(inner, found.count)}
    return lists | {f"{before}{key}" for key in (*_COUNTS, *SPREAD)}


def per_layer(section: Mapping[str, Any], count: int) -> list[str]:
    """Keys whose value is a list of one entry for each layer."""
    return [
        key
        for key, value in section.items()
        if isinstance(value, list | tuple) and len(value) == count and _OF_LAYERS.search(key)
    ]


def layers_of(config: Mapping[str, Any], tensors: Iterable[str]) -> Layers | None:
    """The stack of layers of a model; None where not exactly one has the size that its config says."""
    found = counted(config)
    numbers: dict[str, set[int]] = {}
    for name in tensors:
        if (match := _NUMBERED.match(name)) is not None:
            numbers.setdefault(match[1], set()).add(int(match[2]))
    stacks = [prefix for prefix, seen in numbers.items() if found and seen == set(range(found.count))]
    return Layers(stacks[0], found.count) if len(stacks) == 1 and found else None


def position(index: int, count: int) -> float:
    """Of one of several layers: 0 for the first, 1 for the last and for an only one."""
    return index / (count - 1) if count > 1 else 1.0
