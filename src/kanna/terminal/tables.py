"""The plain look of our tables."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from kanna.reporting.wording import percent, size

__all__ = ["percent", "size", "table"]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """A table whose columns of numbers are right-aligned; a heading with a leading '>' marks one."""
    drawn = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for heading in headings:
        right = heading.startswith(">")
        drawn.add_column(heading.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    return drawn
