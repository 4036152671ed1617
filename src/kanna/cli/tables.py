"""Numbers as people read them, and the plain look of our tables."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table


def size(count: int) -> str:
    """Bytes in decimal units: 812 B, 4.2 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """A table whose columns of numbers are right-aligned; a heading with a leading '>' marks one."""
    drawn = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for heading in headings:
        right = heading.startswith(">")
        drawn.add_column(heading.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    return drawn
