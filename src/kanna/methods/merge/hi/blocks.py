"""The blocks of a model: its layers, one or several at a time, and what lies before and behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kanna.errors import InputError
from kanna.methods.merge.layers import Layers, text_stacks
from kanna.methods.merge.modules import before_layers
from kanna.methods.merge.plan import MergePlan

EMBEDDINGS, ENDS = "embeddings", "norm and head"


@dataclass(frozen=True)
class Block:
    """A block.

    Args:
        name: The number of its layer, or of the first and the last one, behind the name of their stack where
            there are an encoder and a decoder; EMBEDDINGS or ENDS.
        layers: Numbers of its layers; none for the latter, and where there are several stacks.
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
    stacks = text_stacks(plan.config, names)
    if not stacks:
        raise InputError(
            f"the layers of {plan.inputs.lead.name} cannot be told by the names of its tensors",
            "tune numbers for the whole model, with kanna merge sweep",
        )
    outside = [name for name in names if all(stack.number(name) is None for stack in stacks)]
    before = [name for name in outside if before_layers(name)]
    found = [Block(EMBEDDINGS, (), tuple(before), tuple(before))]
    for stack in stacks:
        found += _of_stack(stack, names, group, alone=len(stacks) == 1)
    found.append(Block(ENDS, (), tuple(name for name in outside if name not in before), ()))
    return tuple(block for block in found if block.tensors)


def _of_stack(stack: Layers, names: Sequence[str], group: int, alone: bool) -> list[Block]:
    """Args:
    alone: Whether there is no other stack.
    """
    found = []
    for first in range(0, stack.count, group):
        layers = tuple(range(first, min(stack.count, first + group)))
        own = tuple(name for name in names if stack.number(name) in layers)
        filters = tuple(f"{stack.prefix}{number}." for number in layers)
        told = _name(layers) if alone else f"{stack.role} {_name(layers)}"
        found.append(Block(told, layers if alone else (), own, filters))
    return found


def _name(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
