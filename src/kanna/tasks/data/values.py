"""Values of a row that stand for the same in rows of every kind: texts, groups and costs."""

import math
from collections.abc import Mapping
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.tables import SHAPES
from kanna.tasks.data.units import plain

_MOST_COST = 1e300


def string(where: str, key: str, value: object) -> str:
    """A text, which may be empty.

    Raises:
        InputError: It is none.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} must be a text, found {value!r}", f"use {SHAPES}")
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        raise InputError(f"{where}: {key} holds half a character (a lone surrogate)", "write it again")
    return value


def filled(where: str, key: str, value: object) -> str:
    """A text that says something.

    Raises:
        InputError: It is none, or blank.
    """
    text = string(where, key, value)
    if not text.strip():
        raise InputError(f"{where}: {key} is empty", "fill it in, or remove the row")
    return text


def group_of(value: object) -> str:
    """The name of a group; a missing one is written as NaN by some libraries, and as blanks by others."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    name = plain(str(value))
    return name if name.strip() else ""


def cost_of(where: str, fields: Mapping[str, Any]) -> float:
    """What a wrong answer costs.

    Raises:
        InputError: No number of at least 0.
    """
    cost = fields.get("cost", 1.0)
    number = isinstance(cost, int | float) and not isinstance(cost, bool)
    if not number or not 0 <= cost <= _MOST_COST:  # not a number compares as false
        raise InputError(
            f"{where}: cost {cost!r} is no number of at least 0", "write it as 2.5, or leave it out"
        )
    return float(cost)
