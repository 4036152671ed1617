"""A model with an adapter, which is added tensor by tensor while it is read, and never written out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.merge.adapter import (
    WEIGHTS,
    Adapter,
    Additions,
    Factors,
    additions,
    product_rows,
    saved_whole,
)
from kanna.methods.merge.layers import layers_of
from kanna.methods.merge.token_tensors import TokenTensors, token_tensors

# Rows of a product are made in blocks that begin at multiples of this, so that no value depends on chunks.
_ROWS = 256
Pair = tuple[Tensor, Tensor, Factors]


@dataclass(frozen=True)
class Adapted(Checkpoint):
    """Reads as a model in which the adapter is merged, in float32 where it adds something.

    `tensors` tells dtypes and shapes of the base, but for tensors that the adapter replaces.

    Args:
        base: The model without the adapter.
        adapter: What is added.
        added: Where.
    """

    base: Checkpoint
    adapter: Adapter
    added: Additions

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((*super().files, *self.base.files, *self.adapter.files)))

    def part(self, name: str, start: int, stop: int) -> Tensor:
        return self.with_adapter(name, start, super().part(name, start, stop))

    def rows(self, name: str, numbers: Sequence[int], columns: int) -> Tensor:
        values = super().rows(name, numbers, columns)
        if name not in self.added.factors or not len(numbers):
            return values
        pairs = self._pairs(name)
        wanted = torch.tensor(numbers)
        found = values.to(torch.promote_types(values.dtype, torch.float32))
        for first in sorted({number // _ROWS * _ROWS for number in numbers}):
            places = ((wanted >= first) & (wanted < first + _ROWS)).nonzero().flatten()
            block = super().rows(name, range(first, min(first + _ROWS, self.shape(name)[0])), columns)
            whole = self._added(name, first * columns, block.flatten(), pairs).reshape(-1, columns)
            found[places] = whole[wanted[places] - first]
        return found

    def with_adapter(self, name: str, start: int, values: Tensor) -> Tensor:
        """Values of a tensor laid flat, from `start` on, with what is added there.

        Returns:
            In float32, or float64 where `values` are; `values` themselves where nothing is added.
        """
        if name not in self.added.factors or not len(values):
            return values
        return self._added(name, start, values, self._pairs(name))

    def _pairs(self, name: str) -> list[Pair]:
        """What is added to a tensor: A, B, and how."""
        factors = self.added.factors[name]
        return [(self.adapter.read(one.a), self.adapter.read(one.b), one) for one in factors]

    def _added(self, name: str, start: int, values: Tensor, pairs: Sequence[Pair]) -> Tensor:
        wide = values.double()
        rows, columns = self.shape(name)[0], math.prod(self.shape(name)[1:])
        first = start // columns // _ROWS * _ROWS
        while first * columns < start + len(values):
            stop = min(rows, first + _ROWS)
            low, high = max(start, first * columns), min(start + len(values), stop * columns)
            for a, b, one in pairs:
                block = product_rows(a, b, one, first, stop).flatten()
                wide[low - start : high - start] += block[low - first * columns : high - first * columns]
            first = stop
        return wide.to(torch.promote_types(values.dtype, torch.float32))


def directories(model: Checkpoint) -> tuple[Path, ...]:
    """Of a model and its adapter, which no output may replace."""
    return (model.directory, model.adapter.directory) if isinstance(model, Adapted) else (model.directory,)


def plain(model: Checkpoint) -> Checkpoint:
    """A model without its adapter."""
    return model.base if isinstance(model, Adapted) else model


def stored_part(model: Checkpoint, name: str, start: int, stop: int) -> Tensor:
    """Values of a tensor as they lie on the disk, without what an adapter adds."""
    return Checkpoint.part(model, name, start, stop)


def with_adapter(model: Checkpoint, name: str, start: int, values: Tensor) -> Tensor:
    """What `stored_part` gave, with what an adapter adds, if there is one."""
    return model.with_adapter(name, start, values) if isinstance(model, Adapted) else values


def adapted(base: Checkpoint, directory: Path, name: str, written: bool) -> Adapted:
    """A model with an adapter.

    Args:
        directory: Of the adapter.
        name: The adapter's.
        written: Whether the values of the model can be read yet.

    Raises:
        InputError: The adapter cannot be read, or does not belong to this model.
    """
    adapter = Adapter.open(directory, name)
    if written:
        _refuse_another_base(adapter, base)
    tokens = token_tensors(base, layers_of(base.config, base.tensors))
    tied = tokens.head is None or tokens.head == tokens.embedding or tokens.head not in base.tensors
    start = _apart(adapter, base, tokens) if tied else base
    added = additions(adapter, start, tokens.embedding, tied and start is base)
    added = _without_copies(adapter, start, added, tokens.embedding)
    tensors = {**start.tensors, **{name: adapter.tensors[key] for name, key in added.replaced.items()}}
    config: Mapping[str, Any] = base.config
    if tied and tensors.keys() != base.tensors.keys():  # by a head of its own
        config = {**config, "tie_word_embeddings": False}
    return Adapted(base.directory, f"{base.name}+{adapter.name}", config, tensors, base, adapter, added)


def _apart(adapter: Adapter, base: Checkpoint, tokens: TokenTensors) -> Checkpoint:
    """A base whose head is its embedding, for an adapter that saves the embedding alone whole.

    The adapter was trained with the head that the base has, which is not that embedding any more.
    """
    saved = saved_whole(adapter, base, tokens.embedding)
    if tokens.embedding not in saved or any(name not in base.tensors for name in saved):
        return base
    if tokens.parameter is None:
        return base  # there is no head, or none whose name is known
    return replace(base, tensors={**base.tensors, tokens.parameter: base.tensors[tokens.embedding]})


def _without_copies(adapter: Adapter, base: Checkpoint, added: Additions, embedding: str | None) -> Additions:
    """Without a head that is saved beside an embedding that it equals, for a base that has one for both."""
    saved = added.replaced.get(embedding or "")
    if saved is None:
        return added
    kept = {
        name: key
        for name, key in added.replaced.items()
        if name in base.tensors or not torch.equal(adapter.read(key), adapter.read(saved))
    }
    return Additions(added.factors, kept)


def _refuse_another_base(adapter: Adapter, base: Checkpoint) -> None:
    """Where the model that the adapter names is at hand, it must be this one."""
    named = adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return
    try:
        own = Checkpoint.open(named)
    except InputError:
        return
    if own.directory.resolve() == base.directory.resolve():
        return
    for name, stored in base.tensors.items():
        theirs = own.tensors.get(name)
        same = theirs is not None and theirs.shape == stored.shape
        count = min(2**12, math.prod(stored.shape))
        if not same or not torch.equal(own.part(name, 0, count).double(), base.part(name, 0, count).double()):
            raise InputError(
                f"{adapter.directory / WEIGHTS} was trained on {named}, whose {name} is another than that of "
                f"{base.directory}",
                f"write {named}+{adapter.directory}",
            )
