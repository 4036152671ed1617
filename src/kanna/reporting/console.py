"""Blocks of a page as plain text and tables on a console of rich."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kanna.reporting.blocks import (
    Block,
    Cell,
    Chart,
    Details,
    Examples,
    Figure,
    Paragraph,
    Section,
    Table,
    Term,
    Verdict,
)
from kanna.reporting.fitted import COLOURS, Fitted
from kanna.reporting.wording import filled
from kanna.reporting.wrapped import lines

# An example is told by its end, where the question stands.
_MOST_CHARACTERS, _MOST_OF_ANSWER = 300, 80
_BEHIND_A_SENTENCE = re.compile(r"[.!?]['\")\]]* |[\u3002\uff01\uff1f]")
_ENDS_A_SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f]")
# A line of a verdict begins with what was found.
_FOUND = re.compile(r"(?:verdict: |  )([A-Za-z]+)(?=:|$)")
# Beside what is printable.
_KEPT = "\n\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Told:
    """Text in lines that end between words, what was found coloured; no markup."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, line in enumerate(lines(_plain(self.text), options.max_width)):
            drawn = Text(line)
            found = _FOUND.match(line) if number == 0 else None
            if found and found[1].lower() in COLOURS:
                drawn.stylize(COLOURS[found[1].lower()], *found.span(1))
            yield drawn


class Paper(Console):
    """A console that breaks the lines of texts as those of tables are broken."""

    def print(self, *objects: Any, **settings: Any) -> None:
        super().print(*(Told(one) if isinstance(one, str) else one for one in objects), **settings)


def draw(console: Console, section: Section) -> None:
    """A section's title and blocks, one after the other."""
    if section.title:
        console.print(Told(section.title))
    for block in section.blocks:
        draw_block(console, block)


def draw_block(console: Console, block: Block) -> None:
    """A drawing as its table, or as sentences; long texts that a page folds away are left out."""
    match block:
        case Paragraph():
            console.print(Told(_cell(tuple(block.cells))))
        case Table():
            _draw_table(console, block)
        case Chart(table=Table() as marks):
            _draw_table(console, marks)
        case Chart():
            for line in (block.title, *(f"  {mark}" for mark in block.marks), block.caption):
                console.print(Told(line))
        case Examples():
            _draw_examples(console, block)
        case Verdict():
            for line in _verdict(block):
                console.print(Told(line))
        case Details():
            pass


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Fitted:
    """A table whose columns of numbers are right-aligned; a heading with a leading '>' marks one."""
    return Fitted([_plain(heading) for heading in headings], [[_plain(cell) for cell in row] for row in rows])


def _plain(text: str) -> str:
    """Text without a character that would steer a terminal."""
    return "".join(mark if mark.isprintable() or mark in _KEPT else "�" for mark in text)


def _cell(cell: Cell) -> str:
    parts = cell if isinstance(cell, tuple) else (cell,)
    return "".join(part.text if isinstance(part, Figure | Term) else part for part in parts)


def _draw_table(console: Console, block: Table) -> None:
    """Without columns that are empty in every row."""
    cells = [[_cell(cell) for cell in row] for row in block.rows]
    headings, rows = filled(block.columns, cells)
    console.print(Told(f"{block.title} ({block.nature})" if block.title and block.nature else block.title))
    console.print(table(headings, rows))


def _draw_examples(console: Console, block: Examples) -> None:
    rows = [
        (
            example.direction,
            example.heading,
            last_sentence(example.prompt),
            *map(_short, (example.expected, example.base, example.new)),
        )
        for example in block.examples
    ]
    console.print(Told(block.title))
    console.print(table(("", "", "<prompt", "<expected", f"<{block.base}", f"<{block.new}"), rows))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_OF_ANSWER else line[:_MOST_OF_ANSWER] + "..."


def last_sentence(text: str) -> str:
    """The end of a prompt: its last whole sentence, with what follows it, such as "Answer:"."""
    line = " ".join(text.split())
    begins = [0, *(found.end() for found in _BEHIND_A_SENTENCE.finditer(line))]
    whole = [place for place in begins if _ENDS_A_SENTENCE.search(line, place)] or begins[-1:]
    last = line[whole[-1] :]
    if len(last) > _MOST_CHARACTERS:
        return "..." + last[-_MOST_CHARACTERS:]
    return last if whole[-1] == 0 else f"... {last}"


def _verdict(block: Verdict) -> list[str]:
    status = block.status.upper() if block.status == "fail" else block.status
    size = f": {_cell(block.headline)} ({_cell(block.weights)})" if block.headline else ""
    evidence = [f"  {piece.status}: {piece.task}: {_cell(piece.cells)}" for piece in block.evidence]
    cheaper = [_cell(block.cheaper)] if block.cheaper else []
    return [*evidence, f"verdict: {status}: {block.title}{size}", *cheaper, _cell(block.text)]
