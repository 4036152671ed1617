"""What results are made of: pydantic models, which are written as JSON, read again, and shown."""

from dataclasses import replace as replace_fields
from importlib import import_module
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
)

Item = TypeVar("Item")
Original = TypeVar("Original")
# JSON has lists; what they hold is as strict as elsewhere.
Several = Annotated[tuple[Item, ...], Strict(False)]
Interval = Annotated[tuple[float, float], Strict(False)]
Bytes = Annotated[int, Field(gt=0)]
Scores = dict[str, float]


# Draws results in notebooks; it knows those of all methods, so it is far above this file.
_DRAWN_BY = "kanna.recipe.shown"


class Shown:
    """What notebooks show as the blocks of a page, and print as a line."""

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        drawn: str = import_module(_DRAWN_BY).html(self)
        return drawn


class Result(BaseModel):
    """A result or a part of one. On reading, unknown fields are fine; a number that is a text is not."""

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, validate_by_name=True, serialize_by_alias=True
    )

    def to_dict(self) -> dict[str, Any]:
        """As it is written: JSON's types only."""
        return self.model_dump(mode="json")


class Grown(Result):
    """A result that got more fields since some version.

    Those in `since` are written only where there is something: what was read is written again as it was.
    """

    since: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        nothing: tuple[Any, ...] = (None, [], ())
        return {key: value for key, value in data.items() if key not in self.since or value not in nothing}


def replace(original: Original, **changes: Any) -> Original:
    """A copy of a dataclass or a model with other values in some fields (copy.replace of Python 3.13)."""
    if isinstance(original, BaseModel):
        return original.model_copy(update=changes)
    copied: Original = replace_fields(cast(Any, original), **changes)
    return copied
