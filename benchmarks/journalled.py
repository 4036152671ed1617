"""What benchmarks of many runs share: each run is done once, rows of files, and intervals over questions."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_DRAWS = 10_000


class Journal:
    """Finished runs, a JSON line each; what stands there is not done again.

    Args:
        path: Of the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, dict[str, Any]()
        if path.exists():
            for line in path.open(encoding="utf-8"):
                self.done |= json.loads(line)

    def once(self, key: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """What `compute` gave, now or in an earlier process."""
        name = json.dumps(key)
        if name not in self.done:
            self.done[name] = compute()
            with self.path.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps({name: self.done[name]}) + "\n")
        return self.done[name]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a file of JSON lines, and name it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def demo_script() -> Any:
    """`scripts/train_demo.py`, which the shipped model's stories and questions come from."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
    import train_demo

    return train_demo


def interval(
    values: np.ndarray, base: np.ndarray, of: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Mean of (seeds, questions) differences and its 95 % interval, questions drawn anew 10,000 times.

    Args:
        of: (questions,) differences that the mean is a share of; None for the mean itself.
    """
    mine = (values - base).mean(0)
    draws = np.random.default_rng(0).integers(0, len(mine), (_DRAWS, len(mine)))
    drawn, mean = mine[draws].mean(1), mine.mean()
    if of is not None:
        drawn, mean = drawn / of[draws].mean(1), mean / of.mean()
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(mean), float(low), float(high)
