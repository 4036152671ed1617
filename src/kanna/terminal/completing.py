"""What a shell completes: the names that a flag takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kanna.configuration import DType

DEVICES = ("cpu", "cuda", "mps")
DTYPES: tuple[str, ...] = get_args(DType)
Completion = Callable[[str], list[str]]


def one_of(names: Iterable[str]) -> Completion:
    """For `autocompletion` of typer: those of the names that begin as what was typed."""
    known = tuple(names)

    def begun(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return begun


def metrics(incomplete: str) -> list[str]:
    """Of kanna's own metrics; nothing is imported before a shell asks."""
    from kanna.tasks.metrics.user_metric import METRICS

    known = dict.fromkeys(name for names in METRICS.values() for name in names)
    return one_of(known)(incomplete)


def completion_of(name: str, annotation: Any, choices: object) -> Completion | None:
    """Of the flag of a setting; None where it is no choice.

    Args:
        name: Of the setting.
        annotation: Its type.
        choices: A list of what it may be, where the type does not say so.
    """
    known = tuple(map(str, choices)) if isinstance(choices, list) else _literals(annotation)
    return one_of(known) if known else {"device": one_of(DEVICES), "metric": metrics}.get(name)


def _literals(annotation: Any) -> tuple[str, ...]:
    """The names that a type allows, if it allows nothing but names and nothing at all."""
    origin = get_origin(annotation)
    if origin is Literal:
        return tuple(map(str, get_args(annotation)))
    if origin is Annotated:
        return _literals(get_args(annotation)[0])
    if origin in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _literals(parts[0]) if len(parts) == 1 else ()
    return ()
