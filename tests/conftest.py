"""For all tests: nothing is fetched, workers share the processors, and no test leaves the process changed.

pytest reads this file before any test module, so before torch and transformers look at the environment.
"""

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import process_state

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent / "support"))

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))


@pytest.fixture(autouse=True)
def _process_unchanged() -> Iterator[None]:
    """The generators begin at the same place for each test; one that leaves the process changed fails."""
    with process_state.unchanged(may_draw=True):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> Generator[None, object, object]:
    """A fixture of many tests makes the same thing whichever of them comes first, and changes as little."""
    if fixturedef.scope == "function":
        return (yield)
    with process_state.unchanged(may_draw=True):
        return (yield)
