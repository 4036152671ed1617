"""Tables that fit a console: columns as narrow as they may be, and below that one block for each row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kanna.reporting.wrapped import lines, longest

_GAP, _MARGIN, _INDENT = 2, 1, 2
# Cells that names and long texts need to be told apart.
_LEAST_NAME, _LEAST_TEXT = 16, 24
# Rows whose cells are told one below the other; of more they follow each other.
_FEW = 6
# Of a cell that says what was found.
COLOURS = {"pass": "green", "fail": "red", "undecided": "yellow", "empty": "yellow"}


@dataclass(frozen=True)
class Fitted:
    """A table, drawn on as many cells as there are.

    Args:
        headings: ">" begins one of numbers, which are right-aligned and never broken, "<" one of long texts.
        rows: As many cells each.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self.widths(options.max_width)
        if widths is None:
            block = self._block if len(self.rows) <= _FEW else self._packed
            yield from (line for row in self.rows for line in block(row, options.max_width))
            return
        rule = "-" if options.ascii_only else "─"
        yield Text("")
        yield from self._line(self._titles, widths)
        yield Text(" " * _MARGIN + rule * (sum(widths) + _GAP * (len(widths) - 1)))
        for row in self.rows:
            yield from self._line(row, widths)
        yield Text("")

    def widths(self, width: int) -> list[int] | None:
        """Cells of each column, the widest made narrower; None where they cannot be so few that all fit."""
        columns = [[title, *cells] for title, *cells in zip(self._titles, *self.rows, strict=True)]
        widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
        least = [min(*both) for both in zip(widths, map(self._least, range(len(widths))), strict=True)]
        spare = width - _MARGIN - _GAP * (len(widths) - 1) - sum(widths)
        while spare < 0:
            widest = max(
                range(len(widths)), key=lambda column: (widths[column] > least[column], widths[column])
            )
            if widths[widest] == least[widest]:
                return None
            widths[widest] -= 1
            spare += 1
        return widths

    @cached_property
    def _titles(self) -> list[str]:
        return [heading.lstrip("<>") for heading in self.headings]

    def _least(self, column: int) -> int:
        heading, cells = self.headings[column], [row[column] for row in self.rows]
        title = min(longest(self._titles[column]), _LEAST_NAME)
        if heading.startswith("<"):
            return max(title, _LEAST_TEXT)
        words = max(map(longest, cells), default=0)
        return max(title, words if heading.startswith(">") else min(words, _LEAST_NAME))

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> Iterator[Text]:
        """One row, which may take several lines."""
        cells = [
            lines(cell, width, names=not heading.startswith("<"))
            for heading, cell, width in zip(self.headings, row, widths, strict=True)
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            drawn = Text(" " * _MARGIN)
            for number, (part, cell) in enumerate(zip(parts, row, strict=True)):
                empty = " " * (widths[number] - cell_len(part))
                right = self.headings[number].startswith(">")
                drawn.append(empty if right else "").append(part, COLOURS.get(cell))
                drawn.append("" if right else empty).append(" " * _GAP)
            drawn.rstrip()
            yield drawn

    def _block(self, row: Sequence[str], width: int) -> Iterator[Text]:
        """A row as its name, and below it the heading of each cell and the cell."""
        name, told = self._told(row)
        yield from (Text(line) for line in lines(name, width, names=True))
        label = max((cell_len(title) for title, _ in told), default=0)
        for title, cell in told:
            first = f"{' ' * _INDENT}{title}{' ' * (label - cell_len(title))}  "
            values = lines(cell, width - cell_len(first), names=True)
            for number, value in enumerate(values):
                yield Text(first if number == 0 else " " * cell_len(first)).append(value, COLOURS.get(cell))

    def _packed(self, row: Sequence[str], width: int) -> Iterator[Text]:
        """A row as its name, and its cells with their headings in as few lines as they need."""
        name, told = self._told(row)
        begun = name
        for number, (title, cell) in enumerate(told):
            item = f"{title} {cell}".strip()
            if number and cell_len(f"{begun}; {item}") <= width:
                begun += f"; {item}"
            elif not number and cell_len(f"{begun}  {item}") <= width:
                begun += f"  {item}"
            else:
                yield from (Text(line) for line in lines(begun, width, names=True))
                begun = f"{' ' * _INDENT}{item}"
        yield from (Text(line) for line in lines(begun, width, names=True))

    def _told(self, row: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
        """What a row is of, with the columns that have no heading; then (heading, cell) of what it says."""
        titles = self._titles
        own = next((column for column in range(1, len(titles)) if titles[column]), len(titles))
        name = " ".join(cell for cell in row[:own] if cell)
        named = f"{titles[0]} {name}" if self.headings[0].startswith(">") else name
        pairs = zip(titles[own:], row[own:], strict=True)
        return named.strip(), [(title, cell) for title, cell in pairs if cell]
