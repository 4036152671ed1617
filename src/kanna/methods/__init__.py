"""The methods, each a folder of its own that knows no other: a method enters the house by one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kanna.errors import InputError, suggestion
from kanna.runs.method import Method, load

if TYPE_CHECKING:
    from kanna.reporting.views import View

# Name of the step -> "module:attribute" of its `Method`, which imports nothing heavy.
TABLE: dict[str, str] = {
    "lowrank": "kanna.methods.lowrank:METHOD",
    "laser": "kanna.methods.laser:METHOD",
    "basel": "kanna.methods.basel:METHOD",
    "quantize": "kanna.methods.quantize:METHOD",
    "tune": "kanna.methods.peqa:METHOD",
    "export": "kanna.methods.export:METHOD",
    "merge": "kanna.methods.merge:METHOD",
}


def method(name: str) -> Method:
    """The method of that name; not each is a step.

    Raises:
        InputError: There is none; says which there are.
    """
    if name not in TABLE:
        raise InputError(f"there is no step {name!r}{suggestion(name, TABLE)}", "see kanna run --schema")
    chosen: Method = load(TABLE[name])
    return chosen


def methods() -> Mapping[str, Method]:
    """All of them, by name."""
    return {name: method(name) for name in TABLE}


def reader_of(data: object) -> Method | None:
    """The method whose files, which are no recipes, look like this; None for recipes."""
    keys = set(data) if isinstance(data, Mapping) else set()
    return next((each for each in methods().values() if each.file_key in keys), None)


def views() -> tuple[View, ...]:
    """What a report can show of the results of all methods."""
    return tuple(view for each in methods().values() if each.views for view in load(each.views))
