"""Run `kanna lowrank` in processes that kill themselves at chosen points, then resume; says what came of it.

Started as a program: JSON on stdin, JSON on stdout. It computes only in forked children, so that each starts
from the same state and the libraries are imported once.
"""

import json
import os
import pathlib
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import tiny
import torch


def die_at(point: int, late: bool) -> None:
    """In this process, be killed right before (or after) the `point`-th file takes its final name."""
    count = 0

    def counted(name: str) -> None:
        original = getattr(pathlib.Path, name)

        def wrapped(self: Path, target: Path) -> Path:
            nonlocal count
            count += 1
            if count == point and not late:
                os.kill(os.getpid(), signal.SIGKILL)
            result: Path = original(self, target)
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(pathlib.Path, name, wrapped)

    counted("replace")
    counted("rename")


def in_child(action: Any) -> int:
    """Exit status of `action` in a process of its own; negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def trial(
    root: Path, base: Path, text: Path, settings: dict[str, Any], point: int, late: bool
) -> dict[str, Any]:
    """Kill one run at a point, resume it, and hash the result."""
    out, cache = root / "out", root / "cache"

    def run(resume: bool) -> None:
        tiny.compress(base, out, text, cache, resume=resume, **settings)

    def killed() -> None:
        die_at(point, late)
        run(False)

    status = in_child(killed)
    resumed = in_child(lambda: run(True)) if status else None
    found = {"status": status, "resumed": resumed, "hashes": tiny.hashes(out)}
    shutil.rmtree(root)
    return found


def main() -> None:
    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    results = []
    for number, (point, late) in enumerate(order["points"]):
        root = Path(order["root"]) / str(number)
        root.mkdir()
        results.append(trial(root, Path(order["base"]), Path(order["text"]), order["settings"], point, late))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
