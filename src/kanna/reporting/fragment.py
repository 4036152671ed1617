"""Blocks of a page as plain HTML inside somebody else's page, such as a notebook, whose styles they take."""

from collections.abc import Sequence
from html import escape

from kanna.reporting.blocks import (
    Block,
    Cell,
    Chart,
    Details,
    Examples,
    Figure,
    Paragraph,
    Part,
    Section,
    Table,
    Term,
    Verdict,
)
from kanna.reporting.wording import filled

_COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "undecided": "#9a6700", "empty": "#9a6700"}


def fragment(sections: Sequence[Section]) -> str:
    """Sections one after the other; all text of results is escaped, and nothing of it is run."""
    return f"<div>{''.join(_section(section) for section in sections)}</div>"


def _section(section: Section) -> str:
    title = f"<h4>{_text(section.title)}</h4>" if section.title else ""
    return title + "".join(map(_block, section.blocks))


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return f"<p>{_cell(tuple(block.cells))}</p>"
        case Table():
            return _table(block)
        case Chart(table=Table() as marks):
            return _table(marks)
        case Chart():
            told = "".join(f"<li>{_text(mark)}</li>" for mark in block.marks)
            return f"<p>{_text(block.title)}</p><ul>{told}</ul><p>{_text(block.caption)}</p>"
        case Examples():
            return _examples(block)
        case Verdict():
            return _verdict(block)
        case Details():
            return f"<details><summary>{_text(block.title)}</summary><pre>{_text(block.text)}</pre></details>"


def _table(block: Table) -> str:
    columns, rows = filled(block.columns, block.rows)
    sides = ["right" if column.startswith(">") else "left" for column in columns]
    head = "".join(
        f'<th style="text-align:{side}">{_text(column.lstrip("<>"))}</th>'
        for side, column in zip(sides, columns, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_data, sides, row))}</tr>" for row in rows)
    nature = f" ({block.nature})" if block.nature else ""
    caption = f"<p>{_text(block.title + nature)}</p>" if block.title else ""
    return f"{caption}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _data(side: str, cell: Cell) -> str:
    colour = f";color:{_COLOURS[cell]}" if isinstance(cell, str) and cell in _COLOURS else ""
    return f'<td style="text-align:{side}{colour}">{_cell(cell)}</td>'


def _examples(block: Examples) -> str:
    columns = ("", "", "<prompt", "<expected", f"<{block.base}", f"<{block.new}")
    rows = [
        (one.direction, one.heading, one.prompt, one.expected, one.base, one.new) for one in block.examples
    ]
    return _table(Table(block.title, columns, rows))


def _verdict(block: Verdict) -> str:
    colour = _COLOURS.get(block.status, "inherit")
    lines = [
        f'<strong style="color:{colour}">{_text(block.status.upper())}</strong>: {_text(block.title)}',
        *([f"{_cell(block.headline)} ({_cell(block.weights)})"] if block.headline else []),
        *([_cell(block.cheaper)] if block.cheaper else []),
        *(f"{_text(one.status)}: {_text(one.task)}: {_cell(one.cells)}" for one in block.evidence),
        _cell(block.text),
    ]
    return f'<p style="border-left:4px solid {colour};padding-left:8px">{"<br>".join(lines)}</p>'


def _cell(cell: Cell) -> str:
    return "".join(map(_part, cell if isinstance(cell, tuple) else (cell,)))


def _part(part: Part) -> str:
    if isinstance(part, Term):
        return f'<abbr title="{_text(part.meaning)}">{_text(part.text)}</abbr>'
    return _text(part.text if isinstance(part, Figure) else part)


def _text(text: str) -> str:
    return escape(text).replace("\0", "\N{REPLACEMENT CHARACTER}").replace("\n", "<br>")
