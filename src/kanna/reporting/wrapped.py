"""Lines of text for a console: they end between words, never inside a number or between it and its unit."""

import re
from collections.abc import Iterator

from rich.cells import cell_len, chop_cells

_UNITS = "%|pt|[kMGT]?B|[num]?s|min|h|[mk]?J|k?W|k?Wh|bits?|nats?|[mb]illion"
# A number goes with its unit and with what it counts in a file, and "128 x 384" is one.
_WORD = re.compile(rf"row \d+|[^ \n]*\d(?: x \d[^ \n]*| (?:{_UNITS})(?!\w)[^ \n]*)|[^ \n]+")
_CUT = "…"


def words(text: str) -> list[str]:
    """What must not be parted: words, and numbers with their units."""
    return _WORD.findall(text)


def longest(text: str) -> int:
    """Cells that the longest word takes."""
    return max(map(cell_len, words(text)), default=0)


def lines(text: str, width: int, names: bool = False) -> list[str]:
    """The text in lines of at most `width` cells; each line of it begins a new one, indented as it is.

    Args:
        names: Words that are longer lose their beginning, as names differ at the end; else they are folded.
    """
    return [line for one in text.split("\n") for line in _broken(one, max(1, width), names)]


def _broken(text: str, width: int, names: bool) -> Iterator[str]:
    if cell_len(text) <= width:
        yield text
        return
    indent = text[: len(text) - len(text.lstrip(" "))]
    line = indent if cell_len(indent) < width else ""
    empty = True
    for word in words(text):
        for piece in _pieces(word, width, names):
            if empty:
                line += piece
            elif cell_len(line) + 1 + cell_len(piece) <= width:
                line += f" {piece}"
            else:
                yield line
                line = piece
            empty = False
            if cell_len(line) > width:
                *full, line = chop_cells(line, width)
                yield from full
    yield line


def _pieces(word: str, width: int, names: bool) -> list[str]:
    if cell_len(word) <= width:
        return [word]
    if " " in word:  # a number and its unit, on less than both need
        return [piece for part in word.split(" ") for piece in _pieces(part, width, names)]
    return [shortened(word, width)] if names and cell_len(word) == len(word) else chop_cells(word, width)


def shortened(name: str, width: int) -> str:
    """The end of a name that is longer than `width` cells."""
    return name if len(name) <= width else _CUT + name[len(name) - width + 1 :]
