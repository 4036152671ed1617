"""Pieces of drawings. Lengths are in units of a drawing, which is 360 wide so that its text stays readable on
a phone. Whatever is text is escaped here.
"""

import unicodedata
from collections.abc import Sequence
from html import escape

WIDTH = 360


def svg(height: float, name: str, parts: Sequence[str]) -> str:
    """The whole drawing."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="group" aria-label="{escape(name)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def marked(
    status: str, tip: str, inner: Sequence[str], place: tuple[int, int] | None = None, stop: bool = True
) -> str:
    """A part of a drawing that says something on hover and focus.

    Args:
        place: Row and column in a grid, among whose marks the arrow keys move.
        stop: Whether the Tab key stops here; of a grid it should at one mark only.
    """
    kind = escape(status.replace(" ", "-") or "plain")
    label = escape(tip)
    where = "" if place is None else f' data-row="{place[0]}" data-column="{place[1]}"'
    tab = 0 if stop else -1
    names = f'class="mark {kind}" tabindex="{tab}"{where} role="img" data-tip="{label}" aria-label="{label}"'
    return f"<g {names}>{''.join(inner)}</g>"


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A line of a kind, which the style sheet draws."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(anchor: str, x: float, y: float, words: str, kind: str = "tick") -> str:
    """Where it stands depends on the anchor: start, middle or end of the text."""
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def cut(text: str, most: int) -> str:
    """At most so many columns, of which a Chinese or Japanese character takes two."""
    if columns(text) <= most:
        return text
    kept = ""
    for character in text:
        if columns(kept + character) >= most:
            break
        kept += character
    return kept + "…"


def columns(text: str) -> int:
    """Width of a text in letters of the Latin kind."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
