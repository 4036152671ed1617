"""Blocks of a page as plain text and tables on a console of rich."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
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
    Verdict,
)

# An example is told by its end, where the question stands.
_MOST_CHARACTERS = 48


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
            console.print(_table(block))
        case Chart(table=Table() as marks):
            console.print(_table(marks))
        case Chart():
            for line in (block.title, *(f"  {mark}" for mark in block.marks), block.caption):
                console.print(_text(line))
        case Examples():
            console.print(_examples(block))
        case Verdict():
            for line in _verdict(block):
                console.print(_text(line))
        case Details():
            pass


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> Drawn:
    """A table whose columns of numbers are right-aligned; a heading with a leading '>' marks one."""
    drawn = Drawn(
        box=box.SIMPLE_HEAD, title=_text(title) if title else None, title_justify="left", pad_edge=False
    )
    for heading in headings:
        right = heading.startswith(">")
        name = _text(heading.removeprefix(">").removeprefix("<"))
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(_text, row))
    return drawn


def _text(text: str) -> Text:
    """Text that stands for itself: no markup, and no character that would steer a terminal."""
    return Text(
        "".join(mark if mark.isprintable() or mark in "\n\N{NO-BREAK SPACE}" else "�" for mark in text)
    )


def _cell(cell: Cell) -> str:
    parts = cell if isinstance(cell, tuple) else (cell,)
    return "".join(part.text if isinstance(part, Figure) else part for part in parts)


def _table(block: Table) -> Drawn:
    title = f"{block.title} ({block.nature})" if block.nature else block.title
    return table(block.columns, [[_cell(cell) for cell in row] for row in block.rows], title)


def _examples(block: Examples) -> Drawn:
    rows = [
        (
            example.direction,
            example.heading,
            *map(_short, (example.prompt, example.expected, example.base, example.new)),
        )
        for example in block.examples
    ]
    return table(("", "", "prompt", "expected", block.base, block.new), rows, block.title)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else "..." + line[-_MOST_CHARACTERS:]


def _verdict(block: Verdict) -> list[str]:
    status = block.status.upper() if block.status == "fail" else block.status
    size = f": {_cell(block.headline)} ({_cell(block.weights)})" if block.headline else ""
    evidence = [f"  {piece.status}: {piece.task}: {_cell(piece.cells)}" for piece in block.evidence]
    return [*evidence, f"verdict: {status}: {block.title}{size}", _cell(block.text)]
