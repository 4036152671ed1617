"""The loops of the plain arithmetic, compiled by numba (`kanna[fast]`), to the same bytes.

Each takes flat arrays of float32 as long as one another, and rounds where the plain one does: a product and a
sum are two roundings, never one. Nothing but `available` imports this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from kanna.runs.places import usable_cache

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
Words = NDArray[np.uint64]
Function = TypeVar("Function", bound=Callable[..., Any])

_ARRAY, _ONE = "float32[::1]", "float32"
_LOW = np.int32(2**16 - 1)
_SIGN = np.int32(2**31 - 1)


_CACHE = usable_cache("compiled")


def _compiled(signature: str) -> Callable[[Function], Function]:
    """Compiled once for each machine and version, and kept in kanna's cache where there is one."""

    def kept(function: Function) -> Function:
        before = numba.config.CACHE_DIR
        try:
            numba.config.CACHE_DIR = str(_CACHE)  # read when a function is declared
            made: Function = numba.njit(signature, cache=_CACHE is not None, error_model="numpy")(function)
            return made
        finally:
            numba.config.CACHE_DIR = before

    return kept


@_compiled(f"void({_ARRAY}, {_ARRAY}, {_ARRAY}, {_ONE})")
def add_difference(total: Floats, values: Floats, base: Floats, weight: np.float32) -> None:
    """total += weight (values - base)"""
    for i in range(len(total)):
        total[i] += (values[i] - base[i]) * weight


@_compiled(f"void({_ARRAY}, {_ARRAY}, {_ONE})")
def scale_onto(change: Floats, base: Floats, scale: np.float32) -> None:
    """change = base + scale change"""
    for i in range(len(change)):
        change[i] = change[i] * scale + base[i]


@_compiled(f"void({_ARRAY}, {_ARRAY}, int64[::1])")
def count_high(values: Floats, base: Floats, counts: Counts) -> None:
    """How often each pattern of the upper sixteen bits of |values - base| occurs."""
    for i in range(len(values)):
        bits = np.float32(values[i] - base[i]).view(np.int32) & _SIGN
        counts[bits >> np.int32(16)] += 1


@_compiled(f"void({_ARRAY}, {_ARRAY}, int32, int64[::1])")
def count_low(values: Floats, base: Floats, high: np.int32, counts: Counts) -> None:
    """The same of the lower sixteen bits, where the upper ones are `high`."""
    for i in range(len(values)):
        bits = np.float32(values[i] - base[i]).view(np.int32) & _SIGN
        if bits >> np.int32(16) == high:
            counts[bits & _LOW] += 1


@_compiled(f"int64({_ARRAY}, {_ARRAY}, {_ARRAY}, {_ONE}, {_ONE}, int64)")
def add_largest(
    total: Floats, values: Floats, base: Floats, weight: np.float32, threshold: np.float32, equal: int
) -> int:
    """values = weight (values - base) where that difference is above the threshold, or one of the first so
    many at it, else 0; total += values. What is left of the number of equal ones."""
    found = 0
    for i in range(len(total)):
        found += abs(values[i] - base[i]) == threshold
    end = len(total) if found <= equal else 0  # up to here equal ones stay
    left = max(0, equal - found)
    while end < len(total) and equal:
        equal -= abs(values[end] - base[end]) == threshold
        end += 1
    for i in range(end):
        change = values[i] - base[i]
        values[i] = change * weight if abs(change) >= threshold else np.float32(0)
        total[i] += values[i]
    for i in range(end, len(total)):
        change = values[i] - base[i]
        values[i] = change * weight if abs(change) > threshold else np.float32(0)
        total[i] += values[i]
    return left


@intrinsic  # type: ignore[untyped-decorator]
def _upper(context: Any, left: Any, right: Any) -> Any:
    """The upper half of the product of two words, which has 128 bits."""

    def generated(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(one, wide) for one in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return numba.uint64(numba.uint64, numba.uint64), generated


_FACTORS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_STEPS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


@_compiled("void(uint64[:, ::1], uint64, uint64, uint64)")
def draw(words: Words, first: np.uint64, low: np.uint64, high: np.uint64) -> None:
    """Four words for each counter from `first` on, by ten rounds of Philox under a key of 128 bits."""
    for i in range(len(words)):
        a, b, c, d = first + np.uint64(i), np.uint64(0), np.uint64(0), np.uint64(0)
        k, m = low, high
        for _ in range(10):
            p, q = _FACTORS[0] * a, _FACTORS[1] * c
            a, b, c, d = _upper(_FACTORS[1], c) ^ b ^ k, q, _upper(_FACTORS[0], a) ^ d ^ m, p
            k, m = k + _STEPS[0], m + _STEPS[1]
        words[i, 0], words[i, 1], words[i, 2], words[i, 3] = a, b, c, d


@_compiled(f"void({_ARRAY}, {_ARRAY}, {_ARRAY}, {_ONE}, uint64[::1], uint64)")
def add_drawn(
    total: Floats,
    values: Floats,
    base: Floats,
    weight: np.float32,
    words: Words,
    limit: np.uint64,
) -> None:
    """values = weight (values - base) where the random word is below the limit, else 0; total += values."""
    for i in range(len(total)):
        change = (values[i] - base[i]) * weight
        values[i] = change if words[i] < limit else np.float32(0)
        total[i] += values[i]


@_compiled(f"void({_ARRAY}, {_ARRAY}, {_ARRAY}, {_ARRAY}, {_ONE})")
def add_agreeing(change: Floats, weights: Floats, values: Floats, total: Floats, weight: np.float32) -> None:
    """change += |values|, weights += weight, where the values have the sign of the total."""
    for i in range(len(change)):
        size = values[i] if total[i] >= 0 else -values[i]
        agrees = size > 0
        change[i] += size if agrees else np.float32(0)
        weights[i] += weight if agrees else np.float32(0)


@_compiled(f"void({_ARRAY}, {_ARRAY}, {_ARRAY}, boolean)")
def elect(change: Floats, weights: Floats, total: Floats, normalize: bool) -> None:
    """change = change, with the sign of the total, over the weights of those that agree, if there are any."""
    for i in range(len(change)):
        signed = (change[i] if total[i] >= 0 else -change[i]) + np.float32(0)  # of -0 it makes 0
        change[i] = signed / weights[i] if normalize and weights[i] > 0 else signed
