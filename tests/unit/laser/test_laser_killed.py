"""A search or composition that is killed anywhere and resumed gives the bytes of one that was not."""

from pathlib import Path
from typing import Any

import pytest
from laser_killed import trials

from kanna.methods.laser.arena import SearchOptions
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.searching import laser_search

KILLED = -9
SEARCH: dict[str, Any] = {"verb": "search", "rhos": ["0.5", "0.25"], "fast": None}
WAYS: dict[str, dict[str, Any]] = {
    "exhaustive": SEARCH | {"points": [{"tally": 8, "torn": True}, {"late": False}, {"late": True}]},
    "fast": SEARCH
    | {
        "rhos": ["0.9", "0.5", "0.25", "0.12"],
        "fast": 30,
        "points": [{"tally": 21, "torn": False}],
    },
    "states on disk": SEARCH | {"memory": 0, "points": [{"tally": 9, "torn": True}]},
    "compose": {
        "verb": "compose",
        "points": [{"tally": 1, "torn": False}, {"tally": 3, "torn": True}, {"late": True}],
    },
}


@pytest.fixture(scope="module")
def done(
    planted: Path, task: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """Of each way, what came of the whole run and of each that was killed."""
    root = tmp_path_factory.mktemp("killed")
    options = SearchOptions(rhos=("0.9", "0.5", "0.25", "0.12"), share=0.4, budget=Budget(fast=None))
    laser_search(planted, task, root / "search", options)
    given = {"base": str(planted), "task": str(task), "search": str(root / "search")}
    return {name: trials(way | given, root / name) for name, way in WAYS.items()}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bytes(done, way):
    reference, *others = done[way]
    result = "laser-stages.json" if way == "compose" else "laser-search.json"
    assert reference["status"] == 0 and result in reference["hashes"]
    assert reference["left"] == ["out", "out.run.json"]
    for point, found in zip(WAYS[way]["points"], others, strict=True):
        assert found["status"] == KILLED and "out.kanna-work" in found["there"], point
        assert ("out" in found["there"]) == point.get("late", False), point
        assert found["resumed"] == 0, point
        assert found["hashes"] == reference["hashes"], point
        assert found["left"] == ["out", "out.run.json"], point
