"""Configurations: what the user can say, as flags, in YAML and from Python; imports nothing heavy."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict


class Configuration(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def check_given(self, *, has_text: bool) -> None:
        """Raise InputError for what cannot be, whatever the model is.

        Args:
            has_text: Whether calibration text is given.
        """


# In which models are computed.
DType = Literal["float32", "bfloat16", "float16"]
# Generators take 64 bits; the seeds of single layers and matrices are a little beyond the one that is given.
SEEDS = {"ge": -(2**63), "le": 2**63 - 1}
DRAWN = {**SEEDS, "ge": 0}


def setting(default: Any, description: str, said: JsonDict | None = None, **limits: Any) -> Any:
    """A field of a configuration.

    Args:
        description: The help of its flag.
        said: What else the flag needs; see `kanna.terminal.flags`.
        limits: ge, gt, le and the like.
    """
    return Field(default, description=description, json_schema_extra=said, **limits)


def _parts(given: Any) -> Any:
    return tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else given


def _numbers(given: Any) -> Any:
    try:
        return tuple(map(int, _parts(given)))
    except ValueError:
        raise ValueError("these are no whole numbers: write 1,8") from None


# Several values, of which the command line makes one text: 1,8.
Texts = Annotated[tuple[str, ...], BeforeValidator(_parts)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(_numbers)]
