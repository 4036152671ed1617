"""The words on a page that not everybody knows, each with its meaning."""

from collections.abc import Iterator, Sequence

from kanna.reporting.blocks import Block, Cell, Paragraph, Section, Table, Term, Verdict
from kanna.tasks.metrics.plain import CONSTANT, IN_PROMPT, INTERVAL, meaning

# Headings of columns, which are plain text.
_HEADINGS = {
    "interval": INTERVAL,
    "constant answer": CONSTANT,
    "answer in prompt": IN_PROMPT,
    "prefill": "reading the prompt, until the first word piece is written",
    "decode": "writing one word piece after the other",
    "p50": "half of the times were no longer than this",
    "p95": "95 of 100 times were no longer than this",
    "p99": "99 of 100 times were no longer than this",
    "spread": "the middle half of all times, over their median: how noisy they were",
}


def term(metric: str) -> str | Term:
    """A metric's name with what it means; a name of the user's own as it is."""
    said = meaning(metric)
    return Term(metric, said) if said else metric


def words(verdicts: Sequence[Verdict], sections: Sequence[Section]) -> list[Section]:
    """One section with a table of them, where there are any."""
    blocks = [*verdicts, *(block for section in sections for block in section.blocks)]
    found = dict(pair for block in blocks for pair in _of(block))
    if not found:
        return []
    rows = [[word, said] for word, said in sorted(found.items(), key=lambda pair: pair[0].lower())]
    return [Section("What the words mean", [Table("Words on this page", ("word", "<meaning"), rows)])]


def _of(block: Block) -> Iterator[tuple[str, str]]:
    match block:
        case Verdict():
            for piece in block.evidence:
                yield from _terms(piece.cells)
        case Table():
            for row in block.rows:
                for cell in row:
                    yield from _terms(cell)
            heads = [column.lstrip("<>") for column in block.columns]
            yield from ((head, _HEADINGS[head]) for head in heads if head in _HEADINGS)
        case Paragraph():
            yield from _terms(tuple(block.cells))


def _terms(cell: Cell) -> Iterator[tuple[str, str]]:
    for part in cell if isinstance(cell, tuple) else (cell,):
        if isinstance(part, Term):
            yield part.text, part.meaning
