"""The operation of a method on one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from kanna.methods.merge.resolve import Values
from kanna.methods.merge.rules.differences import TaskArithmetic, Ties
from kanna.methods.merge.rules.linear import Linear
from kanna.methods.merge.rules.operation import Operation


@dataclass(frozen=True)
class Subject:
    """A tensor, as an operation needs to know it.

    Args:
        name: For messages.
        count: Of its values.
        dtype: In which it is computed.
        base: Index of the base model; -1 without one.
        values: What the recipe says for it.
    """

    name: str
    count: int
    dtype: torch.dtype
    base: int
    values: Values


def operation(method: str, subject: Subject) -> Operation:
    """A new operation, for one tensor."""
    return _MAKERS[method](subject)


def _linear(subject: Subject) -> Operation:
    values = subject.values
    return Linear(values.each("weight"), bool(values.one("normalize")))


def _task_arithmetic(subject: Subject) -> Operation:
    values = subject.values
    return TaskArithmetic(
        subject.base, values.each("weight"), bool(values.one("normalize")), values.one("lambda")
    )


def _ties(subject: Subject) -> Operation:
    values = subject.values
    return Ties(
        subject.name,
        subject.count,
        subject.dtype,
        subject.base,
        values.each("weight"),
        values.each("density"),
        bool(values.one("normalize")),
        values.one("lambda"),
    )


_MAKERS: Mapping[str, Callable[[Subject], Operation]] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
}
