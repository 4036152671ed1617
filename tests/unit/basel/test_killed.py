"""Killed at steps of both parts and resumed: the bytes of a run that was left alone."""

import functools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import hashes, in_child

import kanna
from kanna.methods.basel import execute
from kanna.methods.basel.config import BaselConfig

EPOCHS, ROWS, EVENTS = (1, 1, 1), 12, 2
FIRST, STEPS = 2 * 3, 3 * 3  # of the first part and of both; 36 rows are learnt


def run(base: Path, out: Path, rows: Path, kill: int, resume: bool, **more: Any) -> None:
    """In a child; killed by signal when it reports the step `kill`, counted over both parts."""
    # A state behind every step, so that one is taken up wherever the run is killed.
    execute.Course = functools.partial(execute.Course, save_seconds=0.0)  # type: ignore[assignment, misc]
    seen = 0

    def progress(stage: str, *_: object) -> None:
        nonlocal seen
        seen += stage.startswith("part ")
        if kill and seen == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    config = BaselConfig(
        data=rows, keep=0.5, epochs=EPOCHS, rows=ROWS, prune_events=EVENTS, extra_rank=1, **more
    )
    kanna.basel(base, out, config, resume=resume, progress=progress)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "more"),
    [
        (0, {}),
        (1, {"importance": "bsi", "l1": 0.1}),
        (2, {"importance": "taylor", "learn": "roots", "beside": True}),
    ],
)
def test_killed_at_seeded_steps(
    number: int, more: dict[str, Any], bases: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    """Four, three and three steps, some of them those of events, some of the second part."""
    base, reference = bases("llama"), tmp_path / "reference" / "out"
    assert in_child(lambda: run(base, reference, rows, 0, False, **more)) == 0
    draw = random.Random(number)
    first = draw.sample([1, 2, 5, 6], 2 if number == 0 else 1)
    for kill in [*first, draw.choice([3, 4]), draw.randrange(FIRST + 1, STEPS + 1)]:  # 3 and 4 have events
        out = tmp_path / str(kill) / "out"
        killed = in_child(lambda k=kill, o=out: run(base, o, rows, k, False, **more))
        assert killed == -signal.SIGKILL and not out.exists()
        assert in_child(lambda o=out: run(base, o, rows, 0, True, **more)) == 0
        assert hashes(out) == hashes(reference), kill
