"""Numbers of a recipe that vary: `lambda=0.3:1.2:0.1`, or `weight@math=0,0.5,1` of one model."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from kanna.errors import InputError, suggestion
from kanna.methods.merge import known
from kanna.methods.merge.recipe import Recipe

_MOST = 10_000
_EXAMPLE = "write lambda=0.3:1.2:0.1 (from, to, step), weight=0.5,1, or weight@MODEL=0:1:0.1 for one model"
# Digits that steps are rounded to: 0.1 + 0.2 is 0.3.
_DIGITS = 12
# Keys under which no model stands that is merged.
_OTHERS = ("parameters", "tokenizer")


@dataclass(frozen=True)
class Axis:
    """A number that varies.

    Args:
        parameter: Its name.
        model: As the recipe names the one model that it is of; None for all.
        values: What is tried.
        text: As it was asked for.
    """

    parameter: str
    model: str | None
    values: tuple[float, ...]
    text: str

    @property
    def name(self) -> str:
        """What stands before the equals sign."""
        return self.text.partition("=")[0].strip()


def read_axis(text: str, recipe: Recipe, names: Mapping[str, str]) -> Axis:
    """What `--vary` says.

    Args:
        names: Any name of a model -> as the recipe names it.

    Raises:
        InputError: It cannot be read, or is no parameter of the recipe's method, or of one of its models.
    """
    named, equals, given = text.partition("=")
    parameter, at, model = named.strip().partition("@")
    if not equals or not parameter or (at and not model):
        raise InputError(f"--vary {text!r} does not say what varies", _EXAMPLE)
    rule = recipe.rule
    takes = rule.of_models if at else {**rule.of_all, **rule.of_models}
    if parameter not in takes or takes[parameter].flag:
        there = [name for name, one in takes.items() if not one.flag and not one.idle]
        raise InputError(
            f"--vary {text!r}: {parameter} is no number that {recipe.method} has"
            f"{' for one model' if at else ''}{suggestion(parameter, there)}",
            f"it has {', '.join(there) or 'none'}",
        )
    if at and model not in names:
        raise InputError(
            f"--vary {text!r}: {model} is no model of the recipe", f"write one of {', '.join(sorted(names))}"
        )
    values = _values(text, given)
    _check_range(text, takes[parameter], values)
    return Axis(parameter, names[model] if at else None, values, text)


def _values(text: str, given: str) -> tuple[float, ...]:
    try:
        values = listed(given)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"--vary {text!r} gives no numbers", _EXAMPLE) from None
    return values


def listed(given: str) -> tuple[float, ...]:
    """The numbers of `0.3:1.2:0.1` or `0.5,1`.

    Raises:
        ValueError, ZeroDivisionError, OverflowError: It says none.
    """
    if ":" not in given:
        values = tuple(dict.fromkeys(float(one) for one in given.split(",")))
    else:
        first, last, step = (float(one) for one in given.split(":"))
        count = int((last - first) / step + 1e-9) + 1
        if not 0 < count <= _MOST:
            raise ValueError(given)
        values = tuple(round(first + number * step, _DIGITS) for number in range(count))
    if not all(map(math.isfinite, values)):
        raise ValueError(given)
    return values


def numbers(flag: str, given: str, above: float, most: float = math.inf) -> tuple[float, ...]:
    """Numbers of an option.

    Raises:
        InputError: It has none, or one that is not above `above` or beyond `most`.
    """
    try:
        values = listed(given)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"{flag} {given!r} gives no numbers", f"write {flag} 0.1:1:0.1, or 0.5,1") from None
    wrong = [value for value in values if not above < value <= most]
    if wrong:
        raise InputError(f"{flag} tries {wrong[0]:g}", f"give numbers above {above:g} and at most {most:g}")
    return values


def _check_range(text: str, parameter: known.Parameter, values: Sequence[float]) -> None:
    low, high = parameter.lowest, parameter.highest
    for value in values:
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = " and ".join(
                f"{word} {bound:g}"
                for word, bound in (("at least", low), ("at most", high))
                if bound is not None
            )
            raise InputError(f"--vary {text!r} tries {value:g}", f"it must be {bounds}")


def grid(axes: Sequence[Axis]) -> list[tuple[float, ...]]:
    """Every combination, the last axis the fastest.

    Raises:
        InputError: Nothing varies, or one thing twice; far too many combinations.
    """
    if not axes:
        raise InputError("nothing varies", _EXAMPLE)
    places = [(axis.parameter, axis.model) for axis in axes]
    if twice := next((axis for axis in axes if places.count((axis.parameter, axis.model)) > 1), None):
        raise InputError(f"{twice.name} varies twice", "give each --vary once")
    cells = list(product(*(axis.values for axis in axes)))
    if len(cells) > _MOST:
        raise InputError(f"{len(cells):,} combinations are too many", "take larger steps")
    return cells


def varied(document: Mapping[str, Any], axes: Sequence[Axis], values: Sequence[float]) -> dict[str, Any]:
    """A recipe with these values, in the place of whatever it says of them."""
    made: dict[str, Any] = copy.deepcopy(dict(document))
    # Those of all models first: what is of one model then stands closer and holds.
    for axis, value in sorted(zip(axes, values, strict=True), key=lambda pair: pair[0].model is not None):
        if axis.model is None:
            _forget(made, axis.parameter)
            made["parameters"] = {**(made.get("parameters") or {}), axis.parameter: value}
        else:
            for entry in _entries(made):
                if str(entry.get("model")) == axis.model:
                    entry["parameters"] = {**(entry.get("parameters") or {}), axis.parameter: value}
    return made


def _forget(node: Any, parameter: str) -> None:
    """Remove a parameter wherever it is given."""
    if isinstance(node, list):
        for one in node:
            _forget(one, parameter)
    elif isinstance(node, dict):
        given = node.get("parameters")
        if isinstance(given, dict):
            given.pop(parameter, None)
        for key, one in node.items():
            if key != "parameters":
                _forget(one, parameter)


def _entries(node: Any) -> list[dict[str, Any]]:
    """All mappings that name a model to be merged."""
    if isinstance(node, list):
        return [entry for one in node for entry in _entries(one)]
    if not isinstance(node, dict):
        return []
    below = [one for key, inner in node.items() if key not in _OTHERS for one in _entries(inner)]
    return [node, *below] if "model" in node else below
