"""What a run took: seconds by stage, memory, where it was computed. None of it is part of the result."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from kanna.measure.machine import machine
from kanna.measure.memory import peak_resident
from kanna.progress import Progress, parted


class Stages:
    """Hand progress on, and add up the seconds of each stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage, self._since = "", time.perf_counter()
        self.seconds: dict[str, float] = {}

    def report(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = parted(stage)[0], now
        self._progress(stage, done, total)


def when_and_where() -> dict[str, Any]:
    """The time, in UTC, and the machine: what a page of results says first about them."""
    return {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}


def run_record(started: float, stages: Mapping[str, float], device: str) -> dict[str, Any]:
    """What goes to `OUT.run.json`.

    Args:
        started: time.perf_counter() at the beginning.
    """
    return {
        **when_and_where(),
        "seconds": round(time.perf_counter() - started, 3),
        "stage_seconds": {name: round(value, 3) for name, value in stages.items()},
        "peak_memory_bytes": peak_resident(),
        "device": device,
        "threads": torch.get_num_threads(),
    }
