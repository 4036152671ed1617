"""What pydantic found wrong with data, in plain words: the key, what was expected and what came."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from kanna.errors import suggestion

_SHOWN = 80
_LIST, _MAPPING, _FLAG = "must be a list", "must be keys and values", "must be true or false"
_WHOLE, _NUMBER = "must be a whole number", "must be a number"
# Type of an error, without what follows it -> what it means.
_WORDS = {
    "tuple_type": _LIST,
    "list_type": _LIST,
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "string_type": "must be a text",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "bool_type": _FLAG,
    "bool_parsing": _FLAG,
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}
_PERCENT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*")


def what_is_wrong(
    error: ValidationError, model: type[BaseModel] | None = None, flags: Mapping[str, str] | None = None
) -> str:
    """The first thing that is wrong, in one line; an unknown key before what may be missing because of it.

    Args:
        model: What was to be read: of its keys the nearest is named.
        flags: Key -> what it is called on the command line, if it came from there.
    """
    found, place = min(((one, Place.of(one["loc"], model)) for one in error.errors()), key=_urgency)
    name = ".".join(map(str, place.keys))
    if flags and place.keys:
        name = flags.get(str(place.keys[0]), name)
    if found["type"] == "extra_forbidden":
        return f"{name} is no setting here{suggestion(str(place.keys[-1]), place.known)}"
    if found["type"] == "missing":
        return f"{name} is missing"
    if found["type"] == "too_short" and found["ctx"]["min_length"] == 1:
        return f"{name} is empty"
    problem = _problem(found)
    return f"{name}: {problem}" if name else problem


@dataclass(frozen=True)
class Place:
    """Where something is wrong.

    Args:
        keys: From the outermost, without the names that pydantic gives to the types a value may have.
        whole: Whether it is one of several types as a whole that did not fit.
        known: Keys that may stand beside the last one.
    """

    keys: tuple[str | int, ...]
    whole: bool
    known: tuple[str, ...]

    @classmethod
    def of(cls, where: Sequence[str | int], model: type[BaseModel] | None) -> "Place":
        keys, known, several = list[str | int](), tuple[str, ...](), False
        for part in where:
            if several:
                several = False
                if not isinstance(part, int):
                    continue
            keys.append(part)
            if isinstance(part, int):
                continue
            known = () if model is None else tuple(model.model_fields)
            field = None if model is None else model.model_fields.get(part)
            several = field is not None and _several(field.annotation)
            model = None if field is None else next(_models(field.annotation), None)
        return cls(tuple(keys), len(keys) < len(where) and where[-1] != keys[-1], known)


def _urgency(found: tuple[Any, Place]) -> tuple[int, int]:
    """Of types that did not fit as a whole, the innermost first."""
    if found[0]["type"] == "extra_forbidden":
        return 0, 0
    return (2, -len(found[1].keys)) if found[1].whole else (1, 0)


def _problem(found: Any) -> str:
    words = _WORDS.get(found["type"])
    said = str(found["msg"]).removeprefix("Value error, ")
    problem = said if words is None else words.format(**found.get("ctx", {}))
    given = found.get("input")
    if isinstance(given, Mapping) or (words is None and str(given) in problem):
        return problem
    percent = _PERCENT.fullmatch(given) if isinstance(given, str) and problem == _NUMBER else None
    instead = "" if percent is None else f": write {float(percent[1]) / 100:g}"
    if found["type"] == "less_than_equal" and found["ctx"]["le"] == 1 and 1 < given <= 100:
        instead = f": did you mean {given / 100:g}"
    return f"{problem}, found {_short(repr(given))}{instead}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _several(annotation: Any) -> bool:
    """Whether a value may be of several types, besides nothing."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return get_origin(annotation) in (Union, UnionType) and len(parts) > 1


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models in a type, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
