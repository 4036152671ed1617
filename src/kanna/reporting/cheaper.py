"""Whether a model is cheaper to run than its base, in a sentence, with the noise of the measurement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kanna.measure.results import FEWEST_PAIRS
from kanna.reporting.benches import Key, keys
from kanna.reporting.blocks import At, Cell, Figure, Part

_UNMEASURED = (
    "Speed and cost: not measured. Do it with: kanna bench MODEL --against BASE --price price.yaml --out DIR"
)
_UNPRICED = " With kanna bench --price FILE this becomes money."


def cheaper(new: Key, base: Key, benches: Sequence[At]) -> Cell:
    """From the last bench of the two, whichever was measured against the other.

    Args:
        new: Name and bytes of the model.
        base: Of what it is compared with.
        benches: The latest last.
    """
    found = [pair for at in benches if (pair := _pair_of(at, new, base)) is not None]
    if not found:
        return _UNMEASURED
    pair = found[-1]
    speed = pair.speed()
    return (*_told(speed), *(_money(pair, speed.is_clear) or (_UNPRICED,)))


def _pair_of(at: At, new: Key, base: Key) -> "_Pair | None":
    if not at.data["ratios"]:
        return None
    first, second = keys(at)
    if new in first and base in second:
        return _Pair(at, 0)
    return _Pair(at, 1) if new in second and base in first else None


@dataclass(frozen=True)
class _Speed:
    """Time of the base over that of the model: median and ends, and where they stand; above 1 is faster."""

    what: str
    values: tuple[float, float, float]
    places: tuple[At, At, At]
    rounds: int

    @property
    def is_clear(self) -> bool:
        _, low, high = self.values
        return self.rounds >= FEWEST_PAIRS and (low > 1 or high < 1)

    def times(self, which: int) -> Figure:
        return self.places[which].figure(f"{self.values[which]:.2f}x")


@dataclass(frozen=True)
class _Pair:
    """A bench of two models, and which of them is the new one."""

    at: At
    new: int

    def speed(self) -> _Speed:
        """Of the first setting, which is the one that costs are of."""
        ratio = self.at["ratios"][0]
        whole = ratio.get("request")
        paired, what = (ratio["decode"], "decoding") if whole is None else (whole, "a request")
        rounds = self.at.data["settings"].get("repeats", FEWEST_PAIRS)
        middle, low, high = paired.items()
        places = (middle, low, high) if self.new == 0 else (middle, high, low)
        one, two, three = (at.data if self.new == 0 else _inverse(at.data) for at in places)
        return _Speed(what, (one, two, three), places, rounds)

    def costs(self) -> tuple[At | None, At | None]:
        """What was computed at the user's price, of the base and of the model."""
        models = self.at["models"]
        return models[1 - self.new].get("computed_cost"), models[self.new].get("computed_cost")


def _inverse(ratio: float) -> float:
    return 1 / ratio if ratio > 0 else math.inf


def _told(speed: _Speed) -> tuple[Part, ...]:
    if speed.is_clear:
        head: tuple[Part, ...] = (_share(speed), f": {speed.what} ")
    elif speed.rounds < FEWEST_PAIRS:
        head = (f"Cost: fewer than {FEWEST_PAIRS} rounds say nothing: {speed.what} ",)
    else:
        head = (f"Cost: no clear difference: {speed.what} ",)
    return (*head, speed.times(0), " as fast (", speed.times(1), " to ", speed.times(2), ").")


def _share(speed: _Speed) -> Figure:
    """Time is money: what a token costs falls as its time does."""
    saved = 100 * (1 - 1 / speed.values[0])
    return speed.places[0].figure(f"{abs(saved):.1f} % {'cheaper' if saved > 0 else 'dearer'}")


def _money(pair: _Pair, clear: bool) -> tuple[Part, ...]:
    """What the base costs, and what the model does where it clearly differs."""
    base, new = pair.costs()
    if new is None or base is None:
        return ()
    currency = new.data["currency"]
    spent: list[Part] = [" " if clear else " The base costs "]
    spent += _step(base["per_million_tokens"], new["per_million_tokens"] if clear else None, currency)
    spent.append(" per million tokens written")
    before, after = base.get("per_thousand_requests"), new.get("per_thousand_requests")
    if before is not None and after is not None:
        setting = pair.at["models"][0]["settings"][0].data
        written = pair.at.data["settings"].get("new_tokens")
        spent += [", ", *_step(before, after if clear else None, currency), " per 1,000 requests"]
        spent.append(f" of {setting['context']:,} tokens read and {written:,} written" if written else "")
    return (*spent, ".")


def _step(before: At, after: At | None, currency: str) -> tuple[Part, ...]:
    if after is None:
        return (before.figure(money(before.data, currency)),)
    return (before.figure(money(before.data)), " → ", after.figure(money(after.data, currency)))


def money(amount: float, currency: str = "") -> str:
    """An amount, and its currency as the user wrote it: two decimals, or three digits of less than 1."""
    shown = f"{amount:,.2f}" if amount >= 1 else f"{amount:#.3g}"
    return f"{shown} {currency}".strip()
