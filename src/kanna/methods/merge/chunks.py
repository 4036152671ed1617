"""The values of all parts of a tensor, chunk by chunk, as often as they are asked for; hashed once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from kanna.checkpoint.reader import Checkpoint, not_finite
from kanna.errors import InputError
from kanna.methods.merge.adapted import stored_part, with_adapter
from kanna.methods.merge.layout import Part
from kanna.methods.merge.plan import Merged, MergePlan, working_dtype
from kanna.methods.merge.reindexed import Reindexed
from kanna.methods.merge.rows import Rows


class Chunks:
    """Flat values of all parts, in their dtypes; read again in each round, but where one chunk is all of it.

    Args:
        plan: Of the merge.
        tensor: Whose parts are read.
        hashed: Whether `digests` will be asked for.

    Raises:
        InputError: In the first round: a value is not finite.
    """

    def __init__(self, plan: MergePlan, tensor: Merged, hashed: bool = True) -> None:
        self._plan, self._tensor, self._hashed = plan, tensor, hashed
        self._hashes = [hashlib.sha256() for _ in tensor.parts]
        self._read_before = False
        self._all: list[Tensor] | None = None
        self._reindexed: list[Reindexed] | None = None

    @property
    def digests(self) -> list[str]:
        """sha256 of the data of each part, after a round."""
        return [one.hexdigest() for one in self._hashes]

    def __iter__(self) -> Iterator[list[Tensor]]:
        count, step = self._tensor.spec.numbers, self._plan.step(self._tensor)
        if self._all is not None:
            yield self._all
            return
        if self._tensor.rows is not None and self._reindexed is None:
            self._sweep()
            self._reindexed = self._by_rows(self._tensor.rows)
        for start in range(0, count, step):
            stop = min(count, start + step)
            chunk = [self._part(index, start, stop) for index in range(len(self._hashes))]
            if count <= step:
                self._all = chunk
            yield chunk
        self._read_before = True

    def file(self, part: Part) -> Path:
        """Where a part lies."""
        return self._plan.inputs.models[part.model].tensors[part.tensor].file

    def _by_rows(self, rows: Rows) -> list[Reindexed]:
        models, dtype = self._plan.inputs.models, working_dtype(self._plan.inputs, self._tensor)
        return [Reindexed(models, part, rows, index, dtype) for index, part in enumerate(self._tensor.parts)]

    def _sweep(self) -> None:
        """See the parts as they lie on disk; their rows are read in another order then."""
        for index, part in enumerate(self._tensor.parts):
            count = math.prod(self._plan.inputs.models[part.model].shape(part.tensor))
            for start in range(0, count, self._plan.chunk):
                self._part(index, start, min(count, start + self._plan.chunk))
        self._read_before = True

    def _part(self, index: int, start: int, stop: int) -> Tensor:
        if self._reindexed is not None:
            return self._reindexed[index].part(start, stop)
        part = self._tensor.parts[index]
        model = self._plan.inputs.models[part.model]
        values = stored_part(model, part.tensor, start, stop)
        if not self._read_before:
            if self._hashed:
                self._hashes[index].update(values.view(torch.uint8).numpy().data)
            _refuse_not_finite(model, part.tensor, values)
        return with_adapter(model, part.tensor, start, values)


def _refuse_not_finite(model: Checkpoint, name: str, values: Tensor) -> None:
    if bad := not_finite(values):
        raise InputError(
            f"{name} in {model.tensors[name].file} holds NaN or infinite values ({bad} in {len(values)})",
            "fetch that model again, or merge without it",
        )
