"""Whether a model is cheaper to run than its base, in a sentence, with the noise of the measurement."""

from collections.abc import Sequence

from kanna.measure.results import FEWEST_PAIRS
from kanna.reporting.blocks import At, Cell, Figure, Part

_UNMEASURED = (
    "Speed and cost: not measured. Do it with: kanna bench MODEL --against BASE --price price.yaml --out DIR"
)
_UNPRICED = " With kanna bench --price FILE this becomes money."


def cheaper(new: tuple[str, int], base: tuple[str, int], benches: Sequence[At]) -> Cell:
    """From the last bench of the two.

    Args:
        new: Name and bytes of the model.
        base: Of what it is compared with.
    """
    found = [at for at in benches if _of(at) == (new, base) and at.data["ratios"]]
    if not found:
        return _UNMEASURED
    at = found[-1]
    return (*_speed(at), *(_money(at) or (_UNPRICED,)))


def _of(at: At) -> tuple[tuple[str, int], ...]:
    return tuple((model["model"], model["bytes_on_disk"]) for model in at.data["models"])


def _speed(at: At) -> tuple[Part, ...]:
    """Of the first setting, which is the one that costs are of."""
    ratio = at["ratios"][0]
    whole = ratio.get("request")
    paired, what = (ratio["decode"], "decoding") if whole is None else (whole, "a request")
    middle, low, high = paired.data
    rounds = at.data["settings"].get("repeats", FEWEST_PAIRS)
    between: tuple[Part, ...] = (paired[1].figure(f"{low:.2f}x"), " to ", paired[2].figure(f"{high:.2f}x"))
    if rounds < FEWEST_PAIRS:
        head: tuple[Part, ...] = (f"Cost: fewer than {FEWEST_PAIRS} rounds say nothing: {what} ",)
    elif low > 1 or high < 1:
        head = (_share(paired[0]), f": {what} ")
    else:
        head = (f"Cost: no clear difference: {what} ",)
    return (*head, paired[0].figure(f"{middle:.2f}x"), " as fast (", *between, ").")


def _share(at: At) -> Figure:
    """Time is money: what a token costs falls as its time does."""
    saved = 100 * (1 - 1 / at.data)
    return at.figure(f"{abs(saved):.1f} % {'cheaper' if saved > 0 else 'dearer'}")


def _money(at: At) -> tuple[Part, ...]:
    """What was computed at the user's price, of the base and of the model."""
    new, base = (model.get("computed_cost") for model in at["models"].items()[:2])
    if new is None or base is None:
        return ()
    currency = new.data["currency"]
    spent: list[Part] = [" ", *_pair(base["per_million_tokens"], new["per_million_tokens"], currency)]
    spent.append(" per million tokens written")
    before, after = base.get("per_thousand_requests"), new.get("per_thousand_requests")
    if before is not None and after is not None:
        setting = at["models"][0]["settings"][0].data
        written = at.data["settings"].get("new_tokens")
        spent += [", ", *_pair(before, after, currency), " per 1,000 requests"]
        spent.append(f" of {setting['context']:,} tokens read and {written:,} written" if written else "")
    return (*spent, ".")


def _pair(before: At, after: At, currency: str) -> tuple[Part, ...]:
    return (before.figure(money(before.data)), " → ", after.figure(money(after.data, currency)))


def money(amount: float, currency: str = "") -> str:
    """An amount, and its currency as the user wrote it: two decimals, or three digits of less than 1."""
    shown = f"{amount:,.2f}" if amount >= 1 else f"{amount:#.3g}"
    return f"{shown} {currency}".strip()
