"""What candidates scored, kept line by line, so that a search that was killed goes on."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kanna.tasks.metrics.summaries import groups_right
from kanna.tasks.records import TaskScore

Item = TypeVar("Item")


@dataclass(frozen=True)
class Tally:
    """Sums over rows, which add up over parts.

    Args:
        rows: How many.
        value: Sum of the headline metric.
        log_loss: Sum of the right answers' log losses, nats.
        groups: Groups of two rows or more.
        groups_right: Those of which all rows are right.
    """

    rows: int = 0
    value: float = 0.0
    log_loss: float = 0.0
    groups: int = 0
    groups_right: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def accuracy(self) -> float:
        return self.value / self.rows

    @property
    def mean_log_loss(self) -> float:
        return self.log_loss / self.rows

    @property
    def consistency(self) -> float | None:
        return self.groups_right / self.groups if self.groups else None


def tally(score: TaskScore) -> Tally:
    """The sums of one score."""
    whole = groups_right(score.records)
    return Tally(
        rows=len(score.records),
        value=sum(record.values[score.metric] for record in score.records),
        log_loss=sum(record.values["log_loss"] for record in score.records),
        groups=len(whole),
        groups_right=sum(whole),
    )


def read_sound(path: Path | None, read: Callable[[dict[str, Any]], Item]) -> Iterator[Item]:
    """What the lines of a file hold, up to one that is damaged or was cut short; the file then ends there.

    Args:
        path: None, or one that is not there, holds nothing.
        read: Raises ValueError, TypeError or KeyError for what it cannot make anything of.
    """
    if path is None or not path.is_file():
        return
    sound = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            item = read(json.loads(line))
        except (ValueError, TypeError, KeyError):
            break
        yield item
        sound += len(line)
    os.truncate(path, sound)


def append_line(path: Path | None, data: Mapping[str, Any]) -> None:
    """Add a line to a file, on the disk when this returns; None keeps nothing."""
    if path is None:
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(data) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(data: dict[str, Any]) -> tuple[tuple[str, int], Tally]:
    key = data.pop("candidate"), data.pop("part")
    return key, Tally(**data)


@dataclass
class Journal:
    """Tallies on disk, one a line, so that a search that was killed goes on.

    Args:
        path: Of the file; None keeps nothing.
        known: (candidate, part) -> tally.
    """

    path: Path | None
    known: dict[tuple[str, int], Tally] = field(default_factory=dict)

    @staticmethod
    def open(path: Path | None) -> "Journal":
        """What the file holds up to a line that is damaged or was cut short; the rest is scored again."""
        return Journal(path, dict(read_sound(path, _read)))

    def add(self, candidate: str, part: int, sums: Tally) -> None:
        self.known[candidate, part] = sums
        append_line(self.path, {"candidate": candidate, "part": part, **asdict(sums)})
