"""What a page is made of, whether it becomes HTML or Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MEASURED, COMPUTED, ESTIMATED = "measured", "computed", "estimated"


@dataclass(frozen=True)
class Figure:
    """A number on the page, and where in the data it comes from.

    Args:
        text: As people read it.
        value: As the data have it.
        source: Name of the result, "#", and the JSON pointer in it: "R/bench-m.json#/models/0/bytes_on_disk".
            For a ratio or a difference two of these with " / " or " - " between them.
    """

    text: str
    value: float
    source: str


@dataclass(frozen=True)
class Term:
    """A word that not everybody knows, and what it means.

    Args:
        text: The word.
        meaning: In one line.
    """

    text: str
    meaning: str


Part = str | Figure | Term
Cell = Part | tuple[Part, ...]


@dataclass(frozen=True)
class At:
    """A place in a result, from which figures are taken.

    Args:
        name: Of the result.
        data: What is there.
        path: How one comes there.
    """

    name: str
    data: Any
    path: tuple[str | int, ...] = ()

    def __getitem__(self, key: str | int) -> "At":
        return At(self.name, self.data[key], (*self.path, key))

    def get(self, key: str) -> "At | None":
        """The place below, or None where there is nothing."""
        return self[key] if self.data.get(key) is not None else None

    def items(self) -> "list[At]":
        """Places of a list's entries."""
        return [self[index] for index in range(len(self.data))]

    @property
    def source(self) -> str:
        steps = (str(key).replace("~", "~0").replace("/", "~1") for key in self.path)
        return f"{self.name}#{''.join(f'/{step}' for step in steps)}"

    def figure(self, text: str) -> Figure:
        """The number here, shown as `text`."""
        return Figure(text, self.data, self.source)

    def cell(self, key: str, form: str | Callable[[Any], str] = ",") -> str | Figure:
        """The number under a key, shown by a format or a function; nothing where there is none."""
        value = self.data.get(key)
        if value is None:
            return ""
        return self[key].figure(format(value, form) if isinstance(form, str) else form(value))

    def over(self, other: "At", text: str) -> Figure:
        """The ratio of this number to another, shown as `text`."""
        return Figure(text, self.data / other.data, f"{self.source} / {other.source}")

    def minus(self, other: "At", text: str) -> Figure:
        """The difference of this number and another, shown as `text`."""
        return Figure(text, self.data - other.data, f"{self.source} - {other.source}")


@dataclass(frozen=True)
class Evidence:
    """What one task says.

    Args:
        status: pass, fail, undecided or not judged.
        task: Its name.
        cells: The scores and what was allowed, as one sentence.
    """

    status: str
    task: str
    cells: Cell


@dataclass(frozen=True)
class Verdict:
    """What the reader must see first, of one model.

    Args:
        status: pass, fail, undecided or not judged; of edits better, worse, no clear difference or no edit.
        title: Of whom.
        headline: The one thing to remember: how much smaller, or how much better.
        weights: Before and after.
        text: Why this status.
        evidence: One per task.
        cheaper: What a request costs beside the base; empty where that is no question.
    """

    status: str
    title: str
    headline: Cell
    weights: Cell
    text: Cell
    evidence: Sequence[Evidence] = ()
    cheaper: Cell = ""


@dataclass(frozen=True)
class Paragraph:
    """Cells that follow each other as one sentence."""

    cells: Sequence[Part]


@dataclass(frozen=True)
class Table:
    """Args:
    title: What it shows.
    columns: Headings; one that begins with ">" is of numbers, one with "<" of long texts.
    rows: As many cells each.
    nature: measured, computed or estimated; empty where that is no question.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    nature: str = ""


@dataclass(frozen=True)
class Chart:
    """Args:
    title: What it shows.
    svg: The drawing; its own text is escaped.
    caption: How to read it.
    marks: The same in words, one sentence per mark.
    table: The same as a table, where there are too many marks for sentences.
    """

    title: str
    svg: str
    caption: str
    marks: Sequence[str]
    table: Table | None = None


@dataclass(frozen=True)
class Example:
    """One flipped example: what was asked and what both models said."""

    heading: str
    direction: str
    prompt: str
    expected: str
    base: str
    new: str


@dataclass(frozen=True)
class Examples:
    """Examples side by side.

    Args:
        title: Of which task.
        base: Name of the first model.
        new: Of the second.
        examples: The worst first.
    """

    title: str
    base: str
    new: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Details:
    """Long text that is folded away on screen."""

    title: str
    text: str


Block = Verdict | Paragraph | Table | Chart | Examples | Details


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """Args:
    title: Of the whole.
    verdicts: What the reader must see first.
    sections: The rest, in order.
    made: Of which models, when and where: a line each.
    data: Result -> what it holds, which all figures come from.
    """

    title: str
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]
    made: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
