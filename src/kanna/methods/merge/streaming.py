"""One tensor, chunk by chunk: read from all models and hashed, merged, rounded, counted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kanna.checkpoint.reader import Checkpoint, not_finite
from kanna.errors import InputError
from kanna.methods.merge.adapted import stored_part, with_adapter
from kanna.methods.merge.layout import Part
from kanna.methods.merge.plan import Merged, MergePlan, working_dtype
from kanna.methods.merge.reindexed import Reindexed
from kanna.methods.merge.rows import Rows, beside_rows
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
    """

    plan: MergePlan
    tensor: Merged
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        self._hashes = [hashlib.sha256() for _ in self.tensor.parts]
        self._read_before = False
        self._last: tuple[int, list[Tensor]] | None = None
        self._reindexed: list[Reindexed] | None = None

    @property
    def digests(self) -> list[str]:
        """sha256 of the data of each part."""
        return [one.hexdigest() for one in self._hashes]

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
        for chunk in self._chunks():
            for part, values in zip(self.tensor.parts, chunk, strict=True):
                if not torch.equal(values, chunk[origin]):
                    raise InputError(
                        f"{part.tensor}, whose values are whole numbers, is another in {self._file(part)} "
                        f"than in {self._file(self.tensor.parts[origin])}",
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
        )
        act = operation(self.plan.recipe.method, subject)
        self._look(act, dtype)
        place = 0
        for chunk in self._chunks():
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
            for chunk in self._chunks():
                act.look(number, [values.to(dtype) for values in chunk])

    def _chunks(self) -> Iterator[list[Tensor]]:
        """The values of all models; read again each time, but where one chunk is all of the tensor."""
        count, step = self.tensor.spec.numbers, self.plan.step(self.tensor)
        if self._last is not None:
            yield self._last[1]
            return
        if self.tensor.rows is not None and self._reindexed is None:
            self._sweep()
            self._reindexed = self._by_rows(self.tensor.rows)
        for start in range(0, count, step):
            chunk = [self._part(index, start, min(count, start + step)) for index in range(len(self._hashes))]
            if count <= step:
                self._last = (start, chunk)
            yield chunk
        self._read_before = True

    def _by_rows(self, rows: Rows) -> list[Reindexed]:
        models, dtype = self.plan.inputs.models, working_dtype(self.plan.inputs, self.tensor)
        return [Reindexed(models, part, rows, index, dtype) for index, part in enumerate(self.tensor.parts)]

    def _sweep(self) -> None:
        """Hash the parts as they lie on disk; their rows are read in another order then."""
        for index, part in enumerate(self.tensor.parts):
            count = math.prod(self.plan.inputs.models[part.model].shape(part.tensor))
            for start in range(0, count, self.plan.chunk):
                self._part(index, start, min(count, start + self.plan.chunk))
        self._read_before = True

    def _part(self, index: int, start: int, stop: int) -> Tensor:
        if self._reindexed is not None:
            return self._reindexed[index].part(start, stop)
        part = self.tensor.parts[index]
        model = self.plan.inputs.models[part.model]
        values = stored_part(model, part.tensor, start, stop)
        if not self._read_before:
            self._hashes[index].update(values.view(torch.uint8).numpy().data)
            _refuse_not_finite(model, part.tensor, values)
        return with_adapter(model, part.tensor, start, values)

    def _file(self, part: Part) -> Path:
        return self.plan.inputs.models[part.model].tensors[part.tensor].file

    def _account(self, origin: Tensor, exact: Tensor, written: Tensor) -> None:
        lost, moved = written.to(exact.dtype) - exact, exact - origin
        self.figures.lost = squares(self.figures.lost, lost)
        self.figures.moved = squares(self.figures.moved, moved)


def _refuse_not_finite(model: Checkpoint, name: str, values: Tensor) -> None:
    if bad := not_finite(values):
        raise InputError(
            f"{name} in {model.tensors[name].file} holds NaN or infinite values ({bad} in {len(values)})",
            "fetch that model again, or merge without it",
        )


def total(figures: Sequence[Sequence[float]]) -> Figures:
    """Of several tensors."""
    lost, moved = (math.fsum(one[index] for one in figures) for index in (0, 1))
    kept, differences = (int(sum(one[index] for one in figures)) for index in (2, 3))
    return Figures(lost, moved, kept, differences)
