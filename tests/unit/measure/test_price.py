"""Cost at the user's price, by hand, and price files that are none."""

from pathlib import Path

import pytest

from kanna.errors import InputError
from kanna.measure.price import Price, cost, read_price


def written(directory: Path, text: str) -> Path:
    path = directory / "price.yaml"
    path.write_text(text)
    return path


def test_a_million_tokens_by_hand(tmp_path: Path) -> None:
    """2 EUR an hour, half of it at work: 1,000 tokens/s are 1.8 million an hour paid."""
    price = read_price(written(tmp_path, "per_hour: 2\ncurrency: EUR\nutilisation: 0.5\none_time: 90"))
    found = cost(price, 1000.0)
    assert found.per_million_tokens == pytest.approx(2 / 1.8)
    assert (found.currency, found.break_even_tokens) == ("EUR", None)


def test_break_even_by_hand() -> None:
    """3.60 an hour: 1 a million tokens at 1,000/s, 2 at 500/s. 50 spent are back after 50 million."""
    price = Price(per_hour=3.6, one_time=50)
    assert cost(price, 1000.0, against=500.0).break_even_tokens == pytest.approx(50e6)
    assert cost(price, 500.0, against=500.0).per_million_tokens == pytest.approx(2.0)


def test_what_cost_nothing_to_make_is_paid_back_at_once() -> None:
    assert cost(Price(per_hour=3.6), 1000.0, against=500.0).break_even_tokens == 0


@pytest.mark.parametrize("speed", [400.0, 500.0])
def test_what_is_not_cheaper_never_pays_back(speed: float) -> None:
    assert cost(Price(per_hour=3.6, one_time=50), speed, against=500.0).break_even_tokens is None


def test_only_the_hour_has_no_default(tmp_path: Path) -> None:
    found = read_price(written(tmp_path, "per_hour: 1.5"))
    assert found == Price(per_hour=1.5, currency="", utilisation=1.0, one_time=0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file"),
        ("- 1\n- 2", "the file"),
        ("currency: EUR", "per_hour"),
        ("per_hour: -1", "per_hour"),
        ("per_hour: 0", "per_hour"),
        ("per_hour: cheap", "per_hour"),
        ("per_hour: .inf", "per_hour"),
        ("per_hour: .nan", "per_hour"),
        ("per_hour: 1\none_time: -5", "one_time"),
        ("per_hour: 1\none_time: .inf", "one_time"),
        ("per_hour: 1\nutilisation: 0", "utilisation"),
        ("per_hour: 1\nutilisation: 1.01", "utilisation"),
        ("per_hour: 1\nper_day: 24", "per_day"),
        ("per_hour: [1", "cannot be read"),
        ("per_hour: 1\n\tcurrency: EUR", "cannot be read"),
    ],
)
def test_what_is_no_price_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        read_price(written(tmp_path, text))
    assert said in str(error.value) and "price.yaml" in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"per_hour: 1\ncurrency: \xa3")
    with pytest.raises(InputError, match="does not exist"):
        read_price(tmp_path / "absent.yaml")
    for path in (tmp_path, latin):
        with pytest.raises(InputError, match="cannot be read"):
            read_price(path)


def test_a_thousand_requests_by_hand() -> None:
    """3.60 an hour, half of it at work, is 0.002 a second: requests of 0.25 s cost 0.5 a thousand."""
    found = cost(Price(per_hour=3.6, utilisation=0.5), 1000.0, request=0.25)
    assert found.per_thousand_requests == pytest.approx(0.5)
    assert "per_thousand_requests" not in cost(Price(per_hour=3.6), 1000.0).to_dict()
