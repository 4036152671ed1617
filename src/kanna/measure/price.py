"""What tokens cost at the user's price: computed from measured speed, never measured.

per_hour: 0.40
currency: EUR
utilisation: 0.5
one_time: 200
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kanna.checked import read_yaml, validated
from kanna.measure.results import Cost

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
    currency: str = ""
    utilisation: float = Field(default=1.0, gt=0, le=1)
    one_time: float = Field(default=0.0, ge=0)


def read_price(path: Path) -> Price:
    """The user's price file.

    Raises:
        InputError: It cannot be read, or a value is missing, unknown or out of range.
    """
    return validated(Price, read_yaml(path, _EXAMPLE), path, f"it looks like {_EXAMPLE}")


def cost(
    price: Price, tokens_per_second: float, against: float | None = None, request: float | None = None
) -> Cost:
    """Of decoding at some speed; with the base's speed, when the difference has paid for `one_time`.

    Args:
        request: Seconds of a whole request, its share of a batch.
    """
    mine = _per_million(price, tokens_per_second)
    saved = 0.0 if against is None else _per_million(price, against) - mine
    paid_back = price.one_time / saved * 1e6 if saved > 0 else None
    thousand = None if request is None else 1000 * request * _per_second(price)
    return Cost(
        per_million_tokens=mine,
        break_even_tokens=paid_back,
        currency=price.currency,
        per_thousand_requests=thousand,
    )


def _per_million(price: Price, tokens_per_second: float) -> float:
    return _per_second(price) / tokens_per_second * 1e6


def _per_second(price: Price) -> float:
    """Of work: the hours that the machine waits are paid by those that it works."""
    return price.per_hour / (3600 * price.utilisation)
