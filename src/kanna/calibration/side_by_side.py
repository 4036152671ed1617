"""A model and what it becomes, block by block, on the same batches: what matrices read in both.

A matrix that is replaced reads what the replaced ones before it hand on, x^, and should give what the
original gives for what it reads there, W x (arXiv 2604.02119). Sums over both are all that is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kanna.calibration.calls import states_of
from kanna.calibration.passage import Passage
from kanna.calibration.statistics import add_products, captured, inputs_of, rows_of, together


@dataclass(frozen=True)
class Walk:
    """All batches before a block, in the original and in the compressed model.

    Args:
        masks: (b, length) bool, batch by batch; None where nothing is padding.
    """

    original: Passage
    compressed: Passage
    masks: Sequence[Tensor | None]


@dataclass
class Sides:
    """A block as it is and as it becomes.

    Args:
        layer: Which.
        path: Of the block.
        original: The block as it is.
        compressed: A copy, of which matrices are replaced.
        forms: Of the replaced modules, by path, as JSON.
        tensors: What is new, by full parameter name.
    """

    layer: int
    path: str
    original: nn.Module
    compressed: nn.Module
    forms: dict[str, object] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class PairStatistics:
    """Sums over tokens of original inputs x and compressed inputs h, float64: x h^T, h h^T, x, h, count."""

    cross: Tensor
    gram: Tensor
    total: Tensor
    total_hat: Tensor
    count: int = 0

    @classmethod
    def empty(cls, features: int, device: torch.device) -> "PairStatistics":
        zeros = torch.zeros(features, dtype=torch.float64, device=device)
        square = zeros.new_zeros(features, features)
        return cls(square, square.clone(), zeros, zeros.clone())

    def add(self, x: Tensor, h: Tensor) -> None:
        """Take in rows (tokens, n) of both."""
        self.cross += x.T @ h
        add_products(self.gram, h)
        self.total += x.sum(0, dtype=torch.float64)
        self.total_hat += h.sum(0, dtype=torch.float64)
        self.count += len(h)


def run_block(block: nn.Module, passage: Passage, beside: Passage | None = None) -> list[Tensor]:
    """The hidden states behind a block, batch by batch.

    Args:
        beside: Another passage that is to go on as this one does.
    """
    states = []
    with torch.no_grad():
        for index in range(passage.batches):
            output = passage.call(index).run(block)
            states.append(states_of(output).cpu())
            for each in (passage, beside):
                if each is not None:
                    each.put(index, output)
    return states


def in_order(walk: Walk, sides: Sides, modules: Sequence[str]) -> list[tuple[list[str], int]]:
    """Modules that read the same, in the order in which the block runs them, and how often it does."""
    with torch.no_grad(), captured(sides.original, sides.path, modules) as seen:
        walk.original.call(0).run(sides.original)
    return [(paths, len(seen[paths[0]])) for paths in together(seen)]


def pair_statistics(
    walk: Walk, sides: Sides, module: str, features: int, calls: int, device: torch.device
) -> PairStatistics:
    """Both blocks run up to the last of the inputs that `module` reads, no further."""
    pair = PairStatistics.empty(features, device)
    for index, mask in enumerate(walk.masks):
        both = (sides.original, walk.original), (sides.compressed, walk.compressed)
        x, h = (inputs_of(side, sides.path, module, passage.call(index), calls) for side, passage in both)
        for before, now in zip(x, h, strict=True):
            pair.add(rows_of(before, mask), rows_of(now, mask))
    return pair
