"""How much models disagree, from a sample of their weights alone: what may go wrong when they are merged.

Of the differences d from the base: how long they are beside the base's weights, the cosine between two of
them, and how often their signs conflict. Long differences that point away from each other cancel or disturb
each other; such figures say where to look, not how good the merge will be: only a task says that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from kanna.methods.merge.layers import Layers, text_stacks
from kanna.methods.merge.plan import Merged, MergePlan, working_dtype

# Of each tensor so many blocks of so many values are looked at, evenly spaced; all of it where it is smaller.
_BLOCKS, _BLOCK = 16, 4096


# The index of a stack of layers and the number of a layer in it; None for what lies in none.
Place = tuple[int, int] | None


@dataclass
class Sums:
    """Of the values of a layer that were looked at.

    Args:
        models: How many differences there are.
    """

    models: int

    def __post_init__(self) -> None:
        self.base = 0.0
        self.products = torch.zeros(self.models, self.models, dtype=torch.float64)
        self.conflicts = self.shared = self.seen = 0

    def add(self, base: Tensor, differences: Sequence[Tensor]) -> None:
        """See values of one tensor: (n,) of the base and of each difference."""
        stack = torch.stack([one.double() for one in differences])
        self.base += float(base.double().square().sum())
        self.products += stack @ stack.T
        changed = (stack != 0).sum(0)
        same = stack.sign().sum(0).abs() == changed
        self.shared += int((changed > 1).sum())
        self.conflicts += int(((changed > 1) & ~same).sum())
        self.seen += stack.shape[1]

    def join(self, other: Sums) -> None:
        """See what another has seen, too."""
        self.base += other.base
        self.products += other.products
        self.conflicts += other.conflicts
        self.shared += other.shared
        self.seen += other.seen

    def to_dict(self) -> dict[str, Any]:
        """Figures; None where there is nothing to divide by."""
        lengths = self.products.diag().sqrt()
        pairs = list(combinations(range(self.models), 2))
        cosines = [
            float(self.products[a, b] / (lengths[a] * lengths[b]))
            for a, b in pairs
            if lengths[a] * lengths[b] > 0
        ]
        base = math.sqrt(self.base)
        return {
            "norm_ratios": [float(one) / base if base else None for one in lengths],
            "cosine": math.fsum(cosines) / len(cosines) if cosines else None,
            "conflicts": self.conflicts / self.shared if self.shared else None,
            "values": self.seen,
        }


def disagreement(plan: MergePlan) -> dict[str, Any] | None:
    """Figures by layer of the output and over all; None where no two models differ from a base.

    Reads at most 65,536 values of each tensor and model.
    """
    base = next((tensor.base for tensor in plan.tensors if tensor.base >= 0), -1)
    if not plan.recipe.rule.from_base or base < 0:
        return None
    chosen = [tensor for tensor in plan.tensors if _has_differences(tensor)]
    names = {plan.inputs.models[part.model].name: None for tensor in chosen for part in _others(tensor)}
    count = len(chosen[0].parts) - 1 if chosen else 0
    if count < 1 or any(len(tensor.parts) - 1 != count for tensor in chosen):
        return None
    stacks = text_stacks(plan.config, [tensor.spec.name for tensor in plan.tensors])
    layers: dict[Place, Sums] = {}
    for tensor in chosen:
        own = layers.setdefault(_place(stacks, tensor.spec.name), Sums(count))
        for values, differences in _samples(plan, tensor):
            own.add(values, differences)
    overall = Sums(count)
    order = sorted(layers, key=lambda one: (one is None, one or (0, 0)))
    for place in order:
        overall.join(layers[place])
    return {
        "models": list(names),
        "sampled": any(math.prod(tensor.spec.shape) > _BLOCKS * _BLOCK for tensor in chosen),
        "all": overall.to_dict(),
        "layers": [{"layer": _called(stacks, place), **layers[place].to_dict()} for place in order],
    }


def _place(stacks: Sequence[Layers], tensor: str) -> Place:
    numbers = ((index, stack.number(tensor)) for index, stack in enumerate(stacks))
    return next(((index, number) for index, number in numbers if number is not None), None)


def _called(stacks: Sequence[Layers], place: Place) -> int | str | None:
    """A number, behind the name of its stack where there are several."""
    if place is None:
        return None
    index, number = place
    return number if len(stacks) == 1 else f"{stacks[index].role} {number}"


def _has_differences(tensor: Merged) -> bool:
    return tensor.values is not None and tensor.base >= 0 and tensor.rows is None and len(tensor.parts) > 1


def _others(tensor: Merged) -> list[Any]:
    return [part for index, part in enumerate(tensor.parts) if index != tensor.base]


def _samples(plan: MergePlan, tensor: Merged) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Blocks of the base and of the differences from it."""
    dtype = working_dtype(plan.inputs, tensor)
    for start, stop in _blocks(tensor.spec.numbers):
        read = [
            plan.inputs.models[part.model].part(part.tensor, start, stop).to(dtype) for part in tensor.parts
        ]
        base = read.pop(tensor.base)
        yield base, [one - base for one in read]


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of evenly spaced blocks; all values where they are few."""
    if count <= _BLOCKS * _BLOCK:
        yield 0, count
        return
    for number in range(_BLOCKS):
        start = (count - _BLOCK) * number // (_BLOCKS - 1)
        yield start, start + _BLOCK
