"""Which tensors of an unfinished merge are written: one line each, so that it can go on after a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.checkpoint.whole import write_whole


@dataclass(frozen=True)
class Note:
    """A tensor that is written.

    Args:
        tensor: Its name.
        file: sha256 of its file up to the end of its data.
        inputs: sha256 of the data of each part that it is made from.
        figures: See `streaming.Figures`.
    """

    tensor: str
    file: str
    inputs: tuple[str, ...]
    figures: tuple[float, ...]


class Journal:
    """Notes in a file, in the order in which tensors were written.

    Args:
        path: A line that a kill cut short ends what is read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._ahead = path, _read(path)
        self._held: list[Note] = []
        self._open = False

    def next(self, tensor: str) -> Note | None:
        """The next note, if it is of that tensor."""
        return self._ahead[0] if self._ahead and self._ahead[0].tensor == tensor else None

    def accept(self) -> None:
        """The next note holds."""
        self._held.append(self._ahead.pop(0))

    def add(self, note: Note) -> None:
        """A tensor was written; whatever was noted behind it does not hold any more."""
        if not self._open:
            write_whole({self._path: "".join(map(_line, self._held)).encode("utf-8")})
            self._ahead, self._open = [], True
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(note))


def _line(note: Note) -> str:
    return json.dumps([note.tensor, note.file, note.inputs, note.figures]) + "\n"


def _read(path: Path) -> list[Note]:
    notes: list[Note] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return notes
    for line in text.splitlines(keepends=True):
        try:
            tensor, file, inputs, figures = _parsed(line)
        except ValueError:
            break
        notes.append(Note(tensor, file, tuple(inputs), tuple(figures)))
    return notes


def _parsed(line: str) -> Any:
    if not line.endswith("\n"):
        raise ValueError(line)
    return json.loads(line)
