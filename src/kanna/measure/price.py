"""What tokens cost at the user's price: computed from measured speed, never measured.

per_hour: 0.40
currency: EUR
utilisation: 0.5
one_time: 200
"""

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kanna.errors import InputError

_EXAMPLE = "{per_hour: 0.40, currency: EUR, utilisation: 0.5, one_time: 200}"


class Price(BaseModel):
    """Args:
    per_hour: Of the machine.
    currency: Its name.
    utilisation: Share of the time that it works.
    one_time: What making the smaller model cost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    per_hour: float = Field(gt=0)
    currency: str = "USD"
    utilisation: float = Field(default=1.0, gt=0, le=1)
    one_time: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Cost:
    """Args:
    per_million_tokens: In the currency.
    break_even_tokens: Tokens after which a cheaper model has paid for its making; None where it never does.
    currency: Its name.
    """

    per_million_tokens: float
    break_even_tokens: float | None
    currency: str


def read_price(path: Path) -> Price:
    """The user's price file.

    Raises:
        InputError: It cannot be read, or a value is missing, unknown or out of range.
    """
    try:
        return Price.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read: {said}", f"give YAML such as {_EXAMPLE}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}", f"it looks like {_EXAMPLE}") from error


def cost(price: Price, tokens_per_second: float, against: float | None = None) -> Cost:
    """Of decoding at some speed; with the base's speed, when the difference has paid for `one_time`."""
    mine = _per_million(price, tokens_per_second)
    if against is None:
        return Cost(mine, None, price.currency)
    saved = _per_million(price, against) - mine
    return Cost(mine, price.one_time / saved * 1e6 if saved > 0 else None, price.currency)


def _per_million(price: Price, tokens_per_second: float) -> float:
    return price.per_hour / (3600 * tokens_per_second * price.utilisation) * 1e6
