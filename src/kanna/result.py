"""What results are made of: pydantic models, which are written as JSON, read again, and shown."""

from dataclasses import replace as replace_fields
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, Strict

Item = TypeVar("Item")
Original = TypeVar("Original")
# JSON has lists; what they hold is as strict as elsewhere.
Several = Annotated[tuple[Item, ...], Strict(False)]
Interval = Annotated[tuple[float, float], Strict(False)]
Bytes = Annotated[int, Field(gt=0)]
Scores = dict[str, float]


class Result(BaseModel):
    """A result or a part of one. On reading, unknown fields are fine; a number that is a text is not."""

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, validate_by_name=True, serialize_by_alias=True
    )

    def to_dict(self) -> dict[str, Any]:
        """As it is written: JSON's types only."""
        return self.model_dump(mode="json")


def replace(original: Original, **changes: Any) -> Original:
    """A copy of a dataclass or a model with other values in some fields (copy.replace of Python 3.13)."""
    if isinstance(original, BaseModel):
        return original.model_copy(update=changes)
    copied: Original = replace_fields(cast(Any, original), **changes)
    return copied
