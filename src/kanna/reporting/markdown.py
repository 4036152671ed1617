"""A page as Markdown (GitHub's flavour, or any with tables)."""

import re
from collections.abc import Sequence

from kanna.reporting.blocks import (
    Block,
    Cell,
    Chart,
    Details,
    Example,
    Examples,
    Figure,
    Page,
    Paragraph,
    Part,
    Table,
    Term,
    Verdict,
)

_MARKS = re.compile(r"([\\`*_\[\]!|~$@])")
# What would begin a list, a heading or a rule at the start of a line.
_STARTS = re.compile(r"^(?=[-+#]+(\s|$))|^(\d{1,9})(?=[.)](\s|$))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# What GitHub would make a link of without any marks, and what it would take for one's scheme.
_LINKS = re.compile(r"(?i)\b(www)\.|(https?|ftp|mailto|xmpp):")
_MADE = "Made by kanna from"
_TICKS = re.compile(r"`+")


def render(page: Page) -> str:
    """The whole document. No text of a result can end a table, open a fence, make a link, or become HTML."""
    parts = [f"# {escaped(page.title)}", *map(escaped, page.made)]
    parts += [_verdict(verdict) for verdict in page.verdicts]
    for section in page.sections:
        parts += [f"## {escaped(section.title)}", *map(_block, section.blocks)]
    names = ", ".join(escaped(name) for name in page.data)
    return "\n\n".join([*parts, f"{_MADE} {names}."]) + "\n"


def is_ours(text: str) -> bool:
    """Whether a text is what `render` gave."""
    last = text.rstrip("\n").rpartition("\n")[2]
    return text.startswith("# ") and last.startswith(_MADE)


def escaped(text: str) -> str:
    """Text on one line that stands for itself."""
    line = " ".join(text.replace("\0", "�").split())
    line = _MARKS.sub(r"\\\1", "".join(_ENTITIES.get(character, character) for character in line))
    return _LINKS.sub(_broken, _STARTS.sub(r"\2\\", line))


def _broken(link: re.Match[str]) -> str:
    """The beginning of a link with its point or colon as an entity."""
    return f"{link[1]}&#46;" if link[1] else f"{link[2]}&#58;"


def fenced(text: str) -> str:
    """Text as it is, between fences longer than any in it; line ends are made alike."""
    plain = text.replace("\0", "�").replace("\r\n", "\n").replace("\r", "\n")
    longest = max((len(run) for run in _TICKS.findall(plain)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{plain}\n{fence}"


def _cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return "".join(_part(part) for part in cell)
    return _part(cell).strip()


def _part(part: Part) -> str:
    """Spaces at the ends join a sentence and stay."""
    text = part.text if isinstance(part, Figure | Term) else part
    before = " " if text[:1].isspace() else ""
    after = " " if text[-1:].isspace() else ""
    return f"{before}{escaped(text)}{after}"


def _verdict(verdict: Verdict) -> str:
    headline = f"**{_cell(verdict.headline)}** ({_cell(verdict.weights)}). " if verdict.headline else ""
    parts = [f"**{verdict.status.upper()}: {escaped(verdict.title)}.** {headline}{_cell(verdict.text)}"]
    parts += [f"- {_cell(verdict.cheaper)}"] if verdict.cheaper else []
    parts += [f"- {piece.status}: {escaped(piece.task)}: {_cell(piece.cells)}" for piece in verdict.evidence]
    return "\n".join(parts[:1]) + ("\n\n" + "\n".join(parts[1:]) if parts[1:] else "")


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return _cell(tuple(block.cells)).strip()
        case Table():
            return _table(block)
        case Chart(table=Table() as table):
            return f"{_table(table)}\n\n{escaped(block.caption)}"
        case Chart():
            marks = "\n".join(f"- {escaped(mark)}" for mark in block.marks)
            return f"### {escaped(block.title)}\n\n{marks}\n\n{escaped(block.caption)}"
        case Examples():
            parts = [_example(block, example) for example in block.examples]
            return "\n\n".join([f"### {escaped(block.title)}", *parts])
        case Details():
            return f"### {escaped(block.title)}\n\n{fenced(block.text)}"
        case Verdict():
            return _verdict(block)


def _table(table: Table) -> str:
    nature = f" ({table.nature})" if table.nature else ""
    heads = [escaped(column.removeprefix(">").removeprefix("<")) for column in table.columns]
    rules = ["---:" if column.startswith(">") else "---" for column in table.columns]
    rows = [_row([_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join([f"### {escaped(table.title)}{nature}", "", _row(heads), _row(rules), *rows])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _example(of: Examples, example: Example) -> str:
    answers = (("expected", example.expected), (of.base, example.base), (of.new, example.new))
    table = [_row(["", "answer"]), _row(["---", "---"])]
    table += [_row([escaped(who), escaped(text)]) for who, text in answers]
    head = f"#### {escaped(example.direction)}, {escaped(example.heading)}"
    return "\n\n".join([head, fenced(example.prompt), "\n".join(table)])
