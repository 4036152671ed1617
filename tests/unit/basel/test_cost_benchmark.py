"""`benchmarks/basel_cost.py`: what it counts and what it says of its figures."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

_FILE = Path(__file__).parents[3] / "benchmarks" / "basel_cost.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("basel_cost", _FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["basel_cost"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["basel_cost"]


def test_it_crosses_where_it_stays_below(benchmark: ModuleType) -> None:
    """A stage that is below by chance, with one above behind it, is no crossing; part 2 is none of them."""
    stage = benchmark.Stage
    stages = [
        stage("full fine-tuning", 1.0, 100, 16),
        stage("LoRA", 0.5, 50, 4),
        stage("start", 0.9, 150, 8, 1.5),
        stage("event 1", 1.1, 120, 6, 1.2),
        stage("event 2", 0.8, 101, 4, 0.7),
        stage("part 2", 0.1, 10, 2),
    ]
    assert list(benchmark.crossings(stages)) == [
        "below the weights of the matrices themselves: from event 2 on (bases 0.70 of the matrices)",
        "below the seconds of a step of full fine-tuning: from event 2 on (bases 0.70 of the matrices)",
        "below the peak memory of full fine-tuning: never",
    ]
    lines = list(benchmark.table(stages))
    assert lines[2] == "| full fine-tuning |  | 1 s (1.00x) | 0 MB (1.00x) | 0 MB (1.00x) |"
    assert "| 1.20 | 1.1 s (1.10x) |" in lines[5] and "(1.20x)" in lines[5] and "(0.38x)" in lines[5]


def test_steps_with_an_event_or_behind_a_validation_are_not_timed(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = benchmark.Memory()
    clock = iter([0.0, 1.0, 3.0, 103.0, 104.0, 204.0, 206.0])
    monkeypatch.setattr(benchmark.time, "process_time", lambda: next(clock))
    watch = benchmark.Watch(memory, {"1": 3})
    for done, stage in enumerate(["a", "a", "a", "a", "b", "b", "b"], 1):
        memory.peak = memory.before + (70 if stage == "a" else 10 + done)
        watch(stage, "1", done)
    # Behind step 3 comes a validation, with step 5 an event, and behind step 6 the next validation.
    assert watch.seconds == {"a": [1.0, 2.0], "b": [100.0]}
    assert watch.peaks == {"a": 70, "b": 17}
