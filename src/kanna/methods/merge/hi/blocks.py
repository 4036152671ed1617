"""The blocks of a model: its layers, one or several at a time, and what lies before and behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kanna.errors import InputError
from kanna.methods.merge.layers import layers_of
from kanna.methods.merge.modules import before_layers
from kanna.methods.merge.plan import MergePlan

EMBEDDINGS, ENDS = "embeddings", "norm and head"


@dataclass(frozen=True)
class Block:
    """A block.

    Args:
        name: The number of its layer, or of the first and the last one; EMBEDDINGS or ENDS.
        layers: Numbers of its layers; none for the latter.
        tensors: What lies in it.
        filters: Parts of names that its tensors have and others lack; none for ENDS, which is all else.
    """

    name: str
    layers: tuple[int, ...]
    tensors: tuple[str, ...]
    filters: tuple[str, ...]


def blocks_of(plan: MergePlan, group: int = 1) -> tuple[Block, ...]:
    """In the order of the model; a block without tensors is left out.

    Args:
        group: Consecutive layers that are one block.

    Raises:
        InputError: The layers cannot be told by the names of tensors.
    """
    names = [tensor.spec.name for tensor in plan.tensors if tensor.values is not None]
    stack = layers_of(plan.config, names)
    if stack is None:
        raise InputError(
            f"the layers of {plan.inputs.lead.name} cannot be told by the names of its tensors",
            "tune numbers for the whole model, with kanna merge sweep",
        )
    numbers = {name: stack.number(name) for name in names}
    outside = [name for name in names if numbers[name] is None]
    before = [name for name in outside if before_layers(name)]
    found = [Block(EMBEDDINGS, (), tuple(before), tuple(before))]
    for first in range(0, stack.count, group):
        layers = tuple(range(first, min(stack.count, first + group)))
        own = tuple(name for name in names if numbers[name] in layers)
        filters = tuple(f"{stack.prefix}{number}." for number in layers)
        found.append(Block(_name(layers), layers, own, filters))
    found.append(Block(ENDS, (), tuple(name for name in outside if name not in before), ()))
    return tuple(block for block in found if block.tensors)


def _name(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
