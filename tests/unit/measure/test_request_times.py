"""Times of requests on a clock that a test moves; percentiles, and ratios of pairs against scipy."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from kanna.measure import latency
from kanna.measure.latency import concurrent, paired_ratio, request, spread_of
from kanna.measure.results import FEWEST_PAIRS


class Clock:
    """Stands for `time`: seconds pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Slow:
    """2 s per prompt, then 0.25, 0.5, ... s per token; each token is one up on the last."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seen, self.grad = clock, [], set()  # type: ignore[var-annotated]

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Any:
        assert use_cache and logits_to_keep == 1
        self.grad.add(torch.is_grad_enabled())
        known = 0 if past_key_values is None else past_key_values
        self.seen.append((known, input_ids.tolist()))
        self.clock.now += 2.0 if known == 0 else 0.25 * (known - 2)
        logits = torch.nn.functional.one_hot((input_ids[:, -1:] + 1) % 50, 50).float()
        return SimpleNamespace(logits=logits, past_key_values=known + input_ids.shape[1])

    __call__ = forward


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return Slow(clock)


def test_the_first_token_is_prefill_and_each_other_a_step(slow: Slow) -> None:
    found = request(slow, torch.tensor([[7, 8, 9], [17, 18, 19]]), 4)
    assert found.prefill == 2.0
    assert found.steps == (0.25, 0.5, 0.75)
    assert found.decode == 1.5


def test_decoding_reads_one_token_and_the_cache(slow: Slow) -> None:
    """Never the prompt again; each token read is the one that was just chosen."""
    request(slow, torch.tensor([[7, 8, 9], [17, 18, 19]]), 4)
    assert slow.seen == [
        (0, [[7, 8, 9], [17, 18, 19]]),
        (3, [[10], [20]]),
        (4, [[11], [21]]),
        (5, [[12], [22]]),
    ]


def test_no_gradient_is_kept_in_any_thread(slow: Slow) -> None:
    assert torch.is_grad_enabled()
    request(slow, torch.tensor([[7]]), 2)
    found, _ = concurrent(slow, torch.tensor([[7]]), 3, streams=3)  # type: ignore[arg-type]
    assert slow.grad == {False} and len(found) == 3 and len(slow.seen) == 2 + 3 * 3


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_has_finished_before_a_time_is_taken(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Waiting takes 3 s on this clock: a time read before it would lack them."""
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)

    def wait(*_: object) -> None:
        clock.now += 3.0

    monkeypatch.setattr(getattr(torch, kind), "synchronize", wait)
    assert latency._now(torch.device(kind)) == 103.0
    assert latency._now(torch.device("cpu")) == 103.0


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_percentiles_are_those_of_numpy(count: int) -> None:
    times = np.random.default_rng(count).gamma(2.0, 0.01, count)
    found = spread_of(times.tolist())
    expected = np.percentile(times, [50, 95, 99])
    assert (found.p50, found.p95, found.p99) == pytest.approx(tuple(expected))
    assert found.spread == pytest.approx(scipy.stats.iqr(times) / np.median(times))
    assert found.count == count


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9, 12, 25, 80])
def test_the_interval_is_scipys(count: int) -> None:
    """That of the median by scipy, distribution-free, where it exists; else the whole range."""
    draw = np.random.default_rng(count)
    ours, theirs = draw.gamma(9.0, 0.1, count), draw.gamma(9.0, 0.15, count)
    middle, low, high = paired_ratio(ours.tolist(), theirs.tolist())
    ratios = theirs / ours
    assert middle == pytest.approx(np.median(ratios))
    if count < FEWEST_PAIRS:
        assert (low, high) == pytest.approx((ratios.min(), ratios.max()))
    else:
        interval = scipy.stats.quantile_test(ratios, q=np.median(ratios), p=0.5).confidence_interval(0.95)
        assert (low, high) == pytest.approx(tuple(interval))


def test_six_pairs_are_the_fewest_that_reach_95_percent() -> None:
    """All ratios lie on one side of the median with 2 / 2^n."""
    assert 2 * 0.5**FEWEST_PAIRS <= 0.05 < 2 * 0.5 ** (FEWEST_PAIRS - 1)


def test_pairs_are_compared_round_by_round() -> None:
    """Rounds differ a hundredfold; within each the base takes twice as long."""
    ours = [0.01, 1.0, 0.1, 0.5, 0.02, 0.3, 0.9]
    assert paired_ratio(ours, [2 * one for one in ours]) == pytest.approx((2.0, 2.0, 2.0))


def test_above_one_means_that_ours_is_faster() -> None:
    assert paired_ratio([1.0], [3.0])[0] == 3.0
