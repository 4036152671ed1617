"""Search and compose in forked processes that kill themselves at chosen points, then resume."""

import os
import pathlib
import shutil
import signal
from pathlib import Path
from typing import Any

from killing import hashes, in_child

from kanna.methods.laser.arena import SearchOptions
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.composing import laser_compose
from kanna.methods.laser.searching import laser_search
from kanna.tasks.journal import Journal, Tally


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_tally(number: int, torn: bool) -> None:
    """In this process, be killed after the `number`-th tally is on disk, or halfway through its line."""
    original, count = Journal.add, 0

    def add(self: Journal, candidate: str, part: int, found: Tally) -> None:
        nonlocal count
        original(self, candidate, part, found)
        count += 1
        if count == number:
            if torn:
                assert self.path is not None
                self.path.write_bytes(self.path.read_bytes()[:-9])
            kill()

    Journal.add = add  # type: ignore[method-assign]


def die_at_rename(late: bool) -> None:
    """In this process, be killed right before, or after, the output gets its name."""
    original = pathlib.Path.rename

    def rename(self: Path, target: Path) -> Path:
        if late:
            original(self, target)
        kill()
        return target

    pathlib.Path.rename = rename  # type: ignore[method-assign, assignment]


def run(order: dict[str, Any], out: Path, resume: bool) -> None:
    if order["verb"] == "compose":
        laser_compose(order["base"], order["task"], order["search"], out, max_steps=8, resume=resume)
        return
    options = SearchOptions(
        rhos=tuple(order["rhos"]),
        share=0.4,
        memory=order.get("memory", 2**30),
        budget=Budget(fast=order["fast"]),
    )
    laser_search(order["base"], order["task"], out, options, resume=resume)


def trial(order: dict[str, Any], root: Path, point: dict[str, Any] | None) -> dict[str, Any]:
    """Run once whole, or kill a run at a point and resume it; and hash the result."""
    out = root / "out"

    def killed() -> None:
        if point is not None and "tally" in point:
            die_at_tally(point["tally"], point["torn"])
        elif point is not None:
            die_at_rename(point["late"])
        run(order, out, False)

    root.mkdir()
    status = in_child(killed)
    there = sorted(path.name for path in root.iterdir())
    resumed = in_child(lambda: run(order, out, True)) if status else None
    left = sorted(path.name for path in root.iterdir())
    found = {"status": status, "there": there, "resumed": resumed, "left": left, "hashes": hashes(out)}
    shutil.rmtree(root)
    return found


def trials(order: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    """What came of a whole run, and of one for each point at which it is killed."""
    root.mkdir()
    return [trial(order, root / str(number), point) for number, point in enumerate([None, *order["points"]])]
