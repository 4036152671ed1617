"""Which way a product with 4-bit codes goes: through torch's kernel, or with the weight multiplied out.

The kernel is for few tokens in bfloat16 on a CPU while nothing is learnt, and for where it is faster: what
is, is measured once in a process for each shape and number of tokens. KANNA_INT4=off or on in the environment
decides it without measuring.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor

from kanna.errors import InputError
from kanna.quant.int4 import Int4

FORCE = "KANNA_INT4"
_FORCED = {"": None, "on": True, "off": False}
# More of them and a weight that is multiplied out is paid off, the sooner the faster the machine's bfloat16.
MOST_TOKENS = 64
# One call of each tells which is faster, where they are that far apart.
_CLEARLY = 4
_MORE_CALLS = 2

Sources = tuple[Tensor | None, ...]
Product = Callable[[], object]


def forced() -> bool | None:
    """What the environment says: the kernel wherever it can be, nowhere, or (None) where it is faster.

    Raises:
        InputError: It says something else.
    """
    said = os.environ.get(FORCE, "")
    if said not in _FORCED:
        raise InputError(f"{FORCE}={said} in the environment", "set it to on or off, or leave it out")
    return _FORCED[said]


def suits(x: Tensor, columns: int) -> bool:
    """Whether the kernel is right for what a layer of so many inputs reads, whatever else the layer is."""
    # What is compiled or traced must not have in it what was measured or laid out meanwhile.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    # A tensor of another class may stand for something else than numbers.
    if type(x) is not Tensor or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return False
    if x.shape[-1:] != (columns,) or not 0 < x.numel() <= MOST_TOKENS * columns:
        return False
    return not (x.requires_grad and torch.is_grad_enabled()) and not torch.is_autocast_enabled("cpu")


class Second:
    """The second copy of a layer's codes, as the kernel reads them.

    It is made anew where one of the tensors that it was made of is another one or has been written to. What
    PyTorch does not count as writing (through `.data`, through numpy) is not seen. It is not saved or copied
    with the layer.
    """

    def __init__(self) -> None:
        self._held: _Held | None = None

    def of(self, sources: Sources, make: Callable[[], Int4 | None]) -> Int4 | None:
        """The copy of these tensors; None where `make` makes none, or nobody could tell when they change."""
        held = self._held
        if held is None or not held.still(sources):
            if any(one is not None and (one.is_inference() or one.device.type != "cpu") for one in sources):
                return None
            with torch.no_grad():
                held = _Held.of(sources, make())
            self._held = held
        return held.copy

    def drop(self) -> None:
        self._held = None

    def __reduce__(self) -> tuple[type[Second], tuple[()]]:
        return Second, ()


@dataclass(frozen=True)
class _Held:
    """A copy, and what tells whether it is stale.

    Args:
        sources: Held, so that no other tensor is taken for one of them.
        numbers: Theirs then: as long as they are held, no others have their addresses.
        marks: How often each had been written to, and where it lay.
    """

    sources: Sources
    numbers: Sources
    marks: list[tuple[int, int]]
    copy: Int4 | None

    @classmethod
    def of(cls, sources: Sources, copy: Int4 | None) -> _Held:
        numbers = tuple(None if one is None else one.detach() for one in sources)
        return cls(sources, numbers, _marks(sources), copy)

    def still(self, sources: Sources) -> bool:
        return all(map(is_, sources, self.sources)) and _marks(sources) == self.marks


def _marks(sources: Sources) -> list[tuple[int, int]]:
    return [(one._version, one.data_ptr()) for one in sources if one is not None]


class Case(NamedTuple):
    """What a measurement is good for.

    Args:
        rows: m. columns: n.
        group: As the kernel is told it.
        tokens: At most, a power of two.
        threads: torch's.
    """

    rows: int
    columns: int
    group: int
    tokens: int
    threads: int

    @classmethod
    def of(cls, rows: int, columns: int, group: int, tokens: int) -> Case:
        return cls(rows, columns, group, 1 << (tokens - 1).bit_length(), torch.get_num_threads())


# Of this process: what was found is good for all models in it.
_FASTER: dict[Case, bool] = {}
_MEASURING = threading.Lock()


def known(case: Case) -> bool | None:
    """Whether the kernel is faster; None where that was not measured yet."""
    return _FASTER.get(case)


def measured(case: Case, kernel: Product, multiplied_out: Product) -> bool:
    """Whether the kernel is faster, by calls of both where it is not known yet, one thread at a time."""
    with _MEASURING:
        if case not in _FASTER:
            _FASTER[case] = _wins(kernel, multiplied_out)
        return _FASTER[case]


def _wins(kernel: Product, multiplied_out: Product) -> bool:
    kernel()  # the first one finds nothing in the caches
    ours, theirs = [_seconds(kernel)], [_seconds(multiplied_out)]
    if max(ours[0], theirs[0]) < _CLEARLY * min(ours[0], theirs[0]):
        for _ in range(_MORE_CALLS):
            ours.append(_seconds(kernel))
            theirs.append(_seconds(multiplied_out))
    return min(ours) < min(theirs)


def _seconds(product: Product) -> float:
    began = time.perf_counter()
    product()
    return time.perf_counter() - began
