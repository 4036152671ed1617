"""One tensor, chunk by chunk: read from all models and hashed, merged, rounded, counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kanna.checkpoint.reader import not_finite
from kanna.errors import InputError
from kanna.methods.merge.chunks import Chunks
from kanna.methods.merge.cuts import Cuts
from kanna.methods.merge.plan import Merged, MergePlan, working_dtype
from kanna.methods.merge.rows import beside_rows
from kanna.methods.merge.rules.fast.available import used
from kanna.methods.merge.rules.make import Subject, operation
from kanna.methods.merge.rules.operation import Operation
from kanna.methods.merge.rules.rounding import rounded
from kanna.methods.merge.rules.sums import squares


@dataclass
class Figures:
    """Of a tensor, or of several.

    Args:
        lost: Sum of squares of what rounding changed.
        moved: Sum of squares of what merging changed, from the model that the output is named after.
        kept: Entries of differences that went in.
        differences: How many there were to choose from.
    """

    lost: float = 0.0
    moved: float = 0.0
    kept: int = 0
    differences: int = 0

    def to_list(self) -> list[float]:
        return [self.lost, self.moved, self.kept, self.differences]


@dataclass
class Stream:
    """Merges one tensor.

    `pieces` gives what is to be written, in order; when they are through, digests and figures are known.

    Args:
        plan: Of the merge.
        tensor: Which one.
        cuts: Thresholds for the whole model, where the recipe wants such.
        hashed: Whether `digests` will be asked for.
        figures: What became of the values.
    """

    plan: MergePlan
    tensor: Merged
    cuts: Cuts | None
    hashed: bool = True
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        self._chunks = Chunks(self.plan, self.tensor, self.hashed)

    @property
    def digests(self) -> list[str]:
        """sha256 of the data of each part."""
        return self._chunks.digests

    def pieces(self) -> Iterator[Tensor]:
        """The values of the output, flat.

        Raises:
            InputError: A value of an input is not finite, one of the output too large for its dtype, or
                tensors differ that can only be copied.
        """
        if self.tensor.values is None:
            yield from self._copied()
        else:
            yield from self._merged()

    def _copied(self) -> Iterator[Tensor]:
        origin = self.tensor.origin
        for chunk in self._chunks:
            for part, values in zip(self.tensor.parts, chunk, strict=True):
                if not torch.equal(values, chunk[origin]):
                    file = self._chunks.file
                    raise InputError(
                        f"{part.tensor}, whose values are whole numbers, is another in {file(part)} "
                        f"than in {file(self.tensor.parts[origin])}",
                        "such a tensor can only be copied, and must be the same in all models",
                    )
            yield chunk[origin]

    def _merged(self) -> Iterator[Tensor]:
        spec, dtype = self.tensor.spec, working_dtype(self.plan.inputs, self.tensor)
        assert self.tensor.values is not None
        subject = Subject(
            spec.name,
            spec.numbers,
            dtype,
            len(self.tensor.parts),
            self.tensor.base,
            self.tensor.values,
            self.tensor.row,
            self.plan.seed,
            None if self.cuts is None else self.cuts.pruners(self.tensor),
            used(self.plan.numbers_read),
        )
        act = operation(self.plan.recipe.method, subject)
        self._look(act, dtype)
        place = 0
        for chunk in self._blocks():
            wide = [values.to(dtype, copy=True) for values in chunk]
            exact = self._unless_kept(act.merged(wide), chunk, place)
            place += len(exact)
            written = rounded(exact, spec.dtype)
            if bad := not_finite(written):
                raise InputError(
                    f"{spec.name}: {bad} merged values are too large for "
                    f"{str(spec.dtype).removeprefix('torch.')}",
                    "write another dtype, such as bfloat16, with --out-dtype",
                )
            self._account(chunk[self.tensor.origin].to(dtype), exact, written)
            yield written
        self.figures.kept, self.figures.differences = act.kept

    def _unless_kept(self, merged: Tensor, chunk: list[Tensor], place: int) -> Tensor:
        """Merged values, but for rows that only the origin has, which stay what they are."""
        if self.tensor.rows is None or self.tensor.rows.kept is None:
            return merged
        first = self.tensor.rows.kept * math.prod(beside_rows(self.tensor.spec.shape)) - place
        first = min(max(0, first), len(merged))
        return torch.cat([merged[:first], chunk[self.tensor.origin][first:].to(merged.dtype)])

    def _look(self, act: Operation, dtype: torch.dtype) -> None:
        for number in range(act.looks):
            for chunk in self._blocks():
                act.look(number, [values.to(dtype) for values in chunk])

    def _blocks(self) -> Iterator[list[Tensor]]:
        """Chunks in smaller parts."""
        size = self.plan.block(self.tensor)
        for chunk in self._chunks:
            yield from map(list, zip(*(values.split(size) for values in chunk), strict=True))

    def _account(self, origin: Tensor, exact: Tensor, written: Tensor) -> None:
        lost, moved = written.to(exact.dtype) - exact, exact - origin
        self.figures.lost = squares(self.figures.lost, lost)
        self.figures.moved = squares(self.figures.moved, moved)


def total(figures: Sequence[Sequence[float]]) -> Figures:
    """Of several tensors."""
    lost, moved = (math.fsum(one[index] for one in figures) for index in (0, 1))
    kept, differences = (int(sum(one[index] for one in figures)) for index in (2, 3))
    return Figures(lost, moved, kept, differences)
