"""Which layer a tensor lies in, by its name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_NUMBERED = re.compile(r"^((?:[^.]+\.)*?)(\d+)\.")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Layers:
    """One stack of layers.

    Args:
        prefix: Of the names of their tensors, before the number.
        count: How many there are.
    """

    prefix: str
    count: int

    def position(self, tensor: str) -> float:
        """0 for the first layer, 1 for the last one and for an only one; 0 for tensors outside of layers."""
        number = self.number(tensor)
        if number is None:
            return 0.0
        return number / (self.count - 1) if self.count > 1 else 1.0

    def number(self, tensor: str) -> int | None:
        """None for a tensor outside of layers."""
        found = _NUMBERED.match(tensor)
        return int(found[2]) if found is not None and found[1] == self.prefix else None


def layers_of(config: Mapping[str, Any], tensors: Iterable[str]) -> Layers | None:
    """The stack of layers of a model; None where not exactly one has the size that its config says."""
    count = next((config[key] for key in _COUNTS if isinstance(config.get(key), int)), None)
    numbers: dict[str, set[int]] = {}
    for name in tensors:
        if (found := _NUMBERED.match(name)) is not None:
            numbers.setdefault(found[1], set()).add(int(found[2]))
    stacks = [prefix for prefix, seen in numbers.items() if count and seen == set(range(count))]
    return Layers(stacks[0], count) if len(stacks) == 1 and count else None
