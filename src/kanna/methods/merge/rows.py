"""From which rows of its models each row of a tensor is made that has one for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

NONE = -1


def rows_in(shape: Sequence[int]) -> int:
    """How many rows a tensor of tokens has; one of shape [1, tokens] has rows of one value."""
    return shape[1] if _lies(shape) else shape[0]


def beside_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a row."""
    return () if _lies(shape) else tuple(shape[1:])


def with_rows(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """A shape with another number of rows."""
    return (1, count) if _lies(shape) else (count, *shape[1:])


def _lies(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and shape[0] == 1


@dataclass(frozen=True)
class Row:
    """A row of an input.

    Args:
        model: Index of the model.
        tensor: Its name there.
        number: Of the row.
    """

    model: int
    tensor: str
    number: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the rows of a tensor come from.

    Args:
        own: For each part, the number of its row for each row of the output; -1 where it has none.
        defaults: Row of the output -> those whose mean stands for it in parts that have none; zeros where
            there are none. Rows that are not listed stand for no token, and hold the mean of all others.
        kept: From this row on the output has the rows of its origin, unmerged.
    """

    own: tuple[Tensor, ...]
    defaults: Mapping[int, tuple[Row, ...]] = field(default_factory=dict)
    kept: int | None = None


def padded(counts: Sequence[int], first: Row) -> Rows | None:
    """Rows of models that have the same tokens, and not equally many rows; None where they have.

    Args:
        counts: Rows of each part.
        first: The tensor of the first model, with how many rows it has; its rows stay where others have none.
    """
    size, common = first.number, min(*counts, first.number)
    if set(counts) == {size}:
        return None
    own = cut(torch.arange(size), common)
    beyond = {row: (replace(first, number=row),) for row in range(common, size)}
    return Rows((own,) * len(counts), beyond, common)


def cut(numbers: Tensor, count: int) -> Tensor:
    """Numbers of rows, where there are no more than `count`."""
    return numbers.masked_fill(numbers >= count, NONE)


def unmoved(rows: Rows, counts: Sequence[int]) -> bool:
    """Whether every part is taken as it is."""
    return all(
        len(own) == count and bool((own == torch.arange(count)).all())
        for own, count in zip(rows.own, counts, strict=True)
    )
