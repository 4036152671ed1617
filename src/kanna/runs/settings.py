"""Settings from the user, whether they came as flags, YAML or Python: one message where they are wrong."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kanna.errors import InputError, suggestion

C = TypeVar("C", bound=BaseModel)


def parse(
    config: type[C],
    settings: Mapping[str, Any],
    remedy: str,
    where: str = "",
    flags: Mapping[str, str] | None = None,
) -> C:
    """The configuration that settings describe; those that are None count as not given.

    Args:
        remedy: What to do where they are wrong.
        where: Put before the message, such as the recipe's name and the step's number.
        flags: Field -> what it is called on the command line, if it came from there.

    Raises:
        InputError: A value out of range, an unknown key or two that exclude each other; it is named.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        return config.model_validate(given)
    except ValidationError as error:
        raise InputError(where + message(error, config.model_fields, flags or {}), remedy) from error


def message(error: ValidationError, known: Iterable[str] = (), flags: Mapping[str, str] | None = None) -> str:
    """What is wrong first, in one line: the key, what was expected and what came."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if flags and first["loc"]:
        place = flags.get(str(first["loc"][0]), place)
    if first["type"] == "extra_forbidden":
        return f"{place} is no setting here{suggestion(str(first['loc'][-1]), known)}"
    given = first.get("input")
    came = (
        "" if isinstance(given, Mapping) or not place or str(given) in first["msg"] else f", found {given!r}"
    )
    problem = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {problem}{came}" if place else problem
