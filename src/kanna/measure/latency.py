"""Seconds of prefill and of each decoded token, and what many such times say together."""

import inspect
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kanna.measure.carried import carried
from kanna.measure.results import Spread


@dataclass(frozen=True)
class Request:
    """Times of one request.

    Args:
        prefill: Seconds until the first new token is known (time to first token).
        steps: Seconds of each further one.
    """

    prefill: float
    steps: tuple[float, ...]

    @property
    def decode(self) -> float:
        return sum(self.steps)

    @property
    def whole(self) -> float:
        """Prefill and all steps: what a request costs."""
        return self.prefill + self.decode


def spread_of(times: Sequence[float]) -> Spread:
    """Percentiles of times in seconds."""
    q25, p50, q75, p95, p99 = np.quantile(np.asarray(times), (0.25, 0.5, 0.75, 0.95, 0.99))
    spread = float((q75 - q25) / p50)
    return Spread(p50=float(p50), p95=float(p95), p99=float(p99), spread=spread, count=len(times))


def request(model: Any, ids: Tensor, new_tokens: int) -> Request:
    """Prefill `ids` (batch, tokens), then decode `new_tokens` greedily, the first of which prefill gives."""
    last = asked_of(model)
    with torch.no_grad():
        began = _now(ids.device)
        out = model(input_ids=ids, **last)
        token = out.logits[:, -1:].argmax(-1)
        first = _now(ids.device) - began
        steps = []
        for _ in range(new_tokens - 1):
            began = _now(ids.device)
            out = model(input_ids=token, **carried(out), **last)
            token = out.logits[:, -1:].argmax(-1)
            steps.append(_now(ids.device) - began)
    return Request(first, tuple(steps))


def asked_of(model: Any) -> dict[str, Any]:
    """Beside the tokens: to keep what it reads, and where it can, the scores of the last token alone."""
    alone = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"use_cache": True, **({"logits_to_keep": 1} if alone else {})}


def concurrent(model: nn.Module, ids: Tensor, new_tokens: int, streams: int) -> tuple[list[Request], float]:
    """As many requests at once, each in a thread of its own, and the seconds until the last is done."""
    began = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        requests = list(pool.map(lambda _: request(model, ids, new_tokens), range(streams)))
    return requests, time.perf_counter() - began


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median of theirs / ours over paired times, and an interval for it at 95 % by order statistics.

    With fewer than six pairs no interval reaches 95 %; it is then the whole range.
    """
    ratios = np.sort(np.asarray(theirs) / np.asarray(ours))
    n = len(ratios)
    below = max(0, _sign_rank(n) - 1)
    return float(np.median(ratios)), float(ratios[below]), float(ratios[n - 1 - below])


def _sign_rank(n: int) -> int:
    """Largest k with P(Binomial(n, 1/2) < k) <= 2.5 %."""
    total, k = 0.0, 0
    while k < n // 2:
        total += math.comb(n, k) * 0.5**n
        if total > 0.025:
            break
        k += 1
    return k


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given: its work is only queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
