"""How rows lie in a forward pass, and the proof that each is computed there as if it were alone.

No family is known by name to take a layout: recurrences and convolutions carry strangers' tokens and padding
along, windows and chunks count places, experts may have room for so many tokens of a pass. So a few rows are
computed both ways before all are, and what differs by more than rounding is not used.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kanna.tasks.tokens.padded import takes_mask


class Layout(StrEnum):
    """The most shared first."""

    PACKED = "packed"
    PADDED = "padded"
    EQUAL = "equal"
    SINGLE = "single"


# Of models that read a text in both directions.
ENCODER_NOTES = {
    Layout.EQUAL: (
        "only texts of equal length were computed together, since padding changes what this model computes",
    ),
    Layout.SINGLE: (
        "every text was computed by itself, since others beside it change what this model computes",
    ),
}
# What models raise that do not take what a layout gives them.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError)
# By how much log-probabilities may differ that are computed in another order: at least so much, and so many
# of the smallest steps of logits as large as these; all together by a quarter of that. More is an error.
_ROUNDING = {torch.float64: (1e-8, 64), torch.float32: (4e-5, 64)}
_ROUNDING_HALF = (0.05, 4)
_TRIED_EQUAL = 4
# How else devices say that they have no memory, or no longer work.
_BROKEN = ("out of memory", "can't allocate memory", "CUDA error", "device-side assert")


@dataclass(frozen=True)
class Seen:
    """What a forward pass says of one row.

    Args:
        logs: Log-probabilities.
        size: Of the logits they come from.
    """

    logs: Tensor
    size: float


Found = Mapping[Hashable, Seen]
Fits = Callable[[Sequence[int]], bool]


def seen(logits: Tensor) -> Seen:
    """Of logits with classes last, all log-probabilities."""
    whole = torch.logsumexp(logits.double(), -1)
    return Seen(logits.double() - whole[..., None], float(whole.abs().max()))


def alike(alone: Seen, other: Seen, model: nn.Module) -> bool:
    """Whether two computations of a row differ by rounding only; what is not a number never does."""
    dtype = next(model.parameters()).dtype
    least, steps = _ROUNDING.get(dtype, _ROUNDING_HALF)
    most = steps * torch.finfo(dtype).eps * alone.size
    off = (alone.logs - other.logs).double().abs()
    together = float(off.square().mean().sqrt())
    return together <= max(least, most / 4) and float(off.max()) <= max(least, most)


def agree(alone: Found, together: Found, model: nn.Module) -> bool:
    """Whether all that both tell of is alike; there is something that both tell of."""
    both = alone.keys() & together.keys()
    return bool(both) and all(alike(alone[key], together[key], model) for key in both)


def layout_of(
    model: nn.Module,
    sizes: Sequence[int],
    together: Callable[[Sequence[int], Layout], Found],
    alone: Callable[[int], Found],
    fits: Fits = lambda _: True,
    first: Layout = Layout.PADDED,
) -> Layout:
    """The first layout of rows, from `first` on, in which some of them are computed as they are alone.

    Args:
        sizes: Tokens of each row.
        together: What some rows in one forward pass of a layout, padded where their sizes differ, give.
        alone: What a row by itself gives, under the same keys.
        fits: Whether rows may share a forward pass at all.
    """
    for layout, some in ((Layout.PADDED, of_many_sizes), (Layout.EQUAL, of_one_size)):
        if layout is Layout.PADDED and first is not Layout.PADDED:
            continue
        rows = some(sizes, fits)
        if len(rows) < 2 or _hold(model, rows, partial(together, rows, layout), alone):
            return layout
    return Layout.SINGLE


def encoder_layout(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    logits: Callable[[Sequence[int]], Sequence[Tensor]],
    fits: Fits,
) -> Layout:
    """How a model reads texts (token ids) that see both ways.

    Convolutions (ConvBERT), pooling (Funnel) and landmarks (Nystromformer) reach into padding, mask or not.

    Args:
        logits: Of some of the texts in one forward pass, what is scored of each, classes last.
        fits: Whether texts may share a forward pass at all.
    """

    def found(rows: Sequence[int], _: Layout = Layout.PADDED) -> Found:
        return {row: seen(one) for row, one in zip(rows, logits(rows), strict=True)}

    first = Layout.PADDED if takes_mask(model) else Layout.EQUAL
    return layout_of(model, list(map(len, texts)), found, lambda row: found([row]), fits, first)


def of_many_sizes(sizes: Sequence[int], fits: Fits = lambda _: True) -> list[int]:
    """The shortest row and the longest that fits beside it: what is padded most, and by what."""
    order = sorted(range(len(sizes)), key=lambda row: sizes[row])
    long = next((row for row in reversed(order[1:]) if fits([order[0], row])), None)
    return [] if long is None else sorted([order[0], long])


def of_one_size(sizes: Sequence[int], fits: Fits = lambda _: True) -> list[int]:
    """Some rows of the size that most have that fit together, the larger where two are as common."""
    by_size: dict[int, list[int]] = {}
    for row, size in enumerate(sizes):
        some = by_size.setdefault(size, [])
        if len(some) < _TRIED_EQUAL and fits([*some, row]):
            some.append(row)
    return max(by_size.items(), key=lambda found: (len(found[1]), found[0]), default=(0, []))[1]


def _hold(
    model: nn.Module,
    rows: Sequence[int],
    together: Callable[[], Found],
    alone: Callable[[int], Found],
) -> bool:
    wanted: dict[Any, Seen] = {}
    for row in rows:
        wanted |= alone(row)
    return agree(wanted, accepted(together), model)


def accepted(compute: Callable[[], Found]) -> Found:
    """What is computed, or nothing where the model does not take what it is given.

    A device without memory, or one that no longer works, says nothing about the model.
    """
    try:
        return compute()
    except REFUSALS as error:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _BROKEN):
            raise
        return {}
