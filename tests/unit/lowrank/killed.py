"""Run `kanna lowrank` in processes that kill themselves at chosen points, then resume; says what came of it.

Started as a program: JSON on stdin, JSON on stdout. It computes only in forked children, so that each starts
from the same state and the libraries are imported once.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import tiny
import torch
from killing import killed_and_resumed


def trial(
    root: Path, base: Path, text: Path, settings: dict[str, Any], point: int, late: bool
) -> dict[str, Any]:
    """Kill one run at a point, resume it, and hash the result."""
    out, cache = root / "out", root / "cache"

    def run(resume: bool) -> None:
        tiny.compress(base, out, text, cache, resume=resume, **settings)

    status, resumed = killed_and_resumed(run, point, late, threads=None)
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
