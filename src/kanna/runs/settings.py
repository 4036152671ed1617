"""Settings from the user, whether they came as flags, YAML or Python: one message where they are wrong."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kanna.errors import InputError
from kanna.wrong import what_is_wrong

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
        raise InputError(where + what_is_wrong(error, config, flags), remedy) from error
