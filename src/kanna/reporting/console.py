"""Blocks of a page as plain text and tables on a console of rich."""

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Drawn
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
from kanna.reporting.wording import filled

# An example is told by its end, where the question stands.
_MOST_CHARACTERS, _MOST_OF_ANSWER = 300, 80
_BEHIND_A_SENTENCE = re.compile(r"[.!?]['\")\]]* |[\u3002\uff01\uff1f]")
_ENDS_A_SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f]")
# Share of its own width that a table needs: on less, its cells would be of few letters each.
_LEAST_WIDTH, _UNLIMITED = 0.75, 10_000
# Beside what is printable.
_KEPT = "\n\N{NO-BREAK SPACE}"


def draw(console: Console, section: Section) -> None:
    """A section's title and blocks, one after the other."""
    if section.title:
        console.print(_text(section.title))
    for block in section.blocks:
        draw_block(console, block)


def draw_block(console: Console, block: Block) -> None:
    """A drawing as its table, or as sentences; long texts that a page folds away are left out."""
    match block:
        case Paragraph():
            console.print(_text(_cell(tuple(block.cells))))
        case Table():
            _draw_table(console, block)
        case Chart(table=Table() as marks):
            _draw_table(console, marks)
        case Chart():
            for line in (block.title, *(f"  {mark}" for mark in block.marks), block.caption):
                console.print(_text(line))
        case Examples():
            _draw_examples(console, block)
        case Verdict():
            for line in _verdict(block):
                console.print(_text(line))
        case Details():
            pass


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Drawn:
    """A table whose columns of numbers are right-aligned; a heading with a leading '>' marks one."""
    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        right = heading.startswith(">")
        name = _text(heading.removeprefix(">").removeprefix("<"))
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(_text, row))
    return drawn


def _text(text: str) -> Text:
    """Text that stands for itself: no markup, and no character that would steer a terminal."""
    return Text("".join(mark if mark.isprintable() or mark in _KEPT else "�" for mark in text))


def _cell(cell: Cell) -> str:
    parts = cell if isinstance(cell, tuple) else (cell,)
    return "".join(part.text if isinstance(part, Figure | Term) else part for part in parts)


def _draw_table(console: Console, block: Table) -> None:
    """Without columns that are empty in every row; on a console that is much too narrow as a list."""
    cells = [[_cell(cell) for cell in row] for row in block.rows]
    headings, rows = filled(block.columns, cells)
    console.print(_text(f"{block.title} ({block.nature})" if block.title and block.nature else block.title))
    drawn = table(headings, rows)
    unlimited = console.options.update(max_width=_UNLIMITED)
    if Measurement.get(console, unlimited, drawn).maximum * _LEAST_WIDTH <= console.width:
        console.print(drawn)
        return
    for row in rows:
        named = [
            f"{name.lstrip('<>')} {cell}".strip() for name, cell in zip(headings, row, strict=True) if cell
        ]
        console.print(_text(f"  {'; '.join(named)}"))


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
    console.print(_text(block.title))
    console.print(table(("", "", "prompt", "expected", block.base, block.new), rows))


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
