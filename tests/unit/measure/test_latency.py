"""Times of requests, their spread, and ratios of pairs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kanna.measure.latency import concurrent, paired_ratio, request, spread_of
from kanna.measure.price import Price, cost, read_price


class Counting:
    """A model that notes how it is called; its next token is always the one after the last it read."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def forward(
        self, input_ids: torch.Tensor, past_key_values: object = None, use_cache: bool = True
    ) -> object:
        assert not torch.is_grad_enabled() and use_cache
        self.calls.append((input_ids.shape[1], past_key_values is not None))
        logits = torch.nn.functional.one_hot((input_ids + 1) % 10, 10).float()
        return SimpleNamespace(logits=logits, past_key_values="cache")

    __call__ = forward


def test_a_prompt_is_read_once_and_tokens_one_by_one():
    model = Counting()
    found = request(model, torch.tensor([[1, 2, 3]]), 5)
    assert model.calls == [(3, False), *[(1, True)] * 4]
    assert len(found.steps) == 4 and found.decode == pytest.approx(sum(found.steps))


def test_streams_run_as_many_requests():
    model = Counting()
    found, seconds = concurrent(model, torch.tensor([[1, 2]]), 3, streams=4)
    assert len(found) == 4 and len(model.calls) == 12 and seconds > 0


@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=60))
def test_spread_is_that_of_numpy(times):
    found = spread_of(times)
    for share, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        assert value == pytest.approx(np.percentile(times, share))
    assert found.spread == pytest.approx(np.subtract(*np.percentile(times, [75, 25])) / np.median(times))
    assert found.count == len(times)


def test_the_interval_of_a_ratio_covers_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        middle, low, high = paired_ratio(draw.lognormal(0, 0.2, 20), draw.lognormal(math.log(1.5), 0.2, 20))
        covered += low <= 1.5 <= high
        assert low <= middle <= high
    assert covered / 600 >= 0.93


def test_few_pairs_give_the_whole_range():
    assert paired_ratio([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]) == (1.0, 0.5, 2.0)


def test_cost_by_hand():
    price = Price(per_hour=3.6, utilisation=0.5, one_time=10.0)
    found = cost(price, 100.0, against=50.0)
    assert found.per_million_tokens == pytest.approx(3.6 / 3600 / (100 * 0.5) * 1e6)
    saved = 3.6 / 3600 / 0.5 * (1 / 50 - 1 / 100)
    assert found.break_even_tokens == pytest.approx(10.0 / saved)
    assert cost(price, 50.0, against=100.0).break_even_tokens is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("per_hour: -1", "per_hour"), ("per_hour: 1\nper_day: 2", "per_day"), ("currency: EUR", "per_hour"),
     ("per_hour: [", "YAML"), ("per_hour: 1\nutilisation: 0", "utilisation")],
)  # fmt: skip
def test_bad_prices(tmp_path, text, said):
    path = tmp_path / "price.yaml"
    path.write_text(text)
    with pytest.raises(Exception, match=said) as error:
        read_price(path)
    assert error.type.__name__ == "InputError"
