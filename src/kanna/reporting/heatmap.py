"""A map of changes over rows and columns: blue is better, orange worse, paler is less.

Blue against orange is told apart by people with any of the common colour blindnesses, and tiles also carry
their number. Colours mix with the page's own background by opacity, so they suit light and dark alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kanna.reporting.svg import WIDTH, marked, svg, text

_LEFT, _RIGHT, _TOP, _GAP = 30, 4, 34, 1
# Narrower or lower than this a tile has no room for its number, a column none for its name.
_NUMBER_WIDE, _NUMBER_HIGH, _NAME_WIDE, _NAME_HIGH = 27, 14, 33, 12
_STEPS = 4


@dataclass(frozen=True)
class Tile:
    """One place of a map.

    Args:
        row: Number of the row, from 0.
        column: Number of the column, from 0.
        change: Against what 0 is, in the units of the scale; None where it is not comparable, which is drawn
            as a ring without a colour.
        tip: Shown on hover and focus.
        framed: Whether it is the one that the text speaks of.
    """

    row: int
    column: int
    change: float | None
    tip: str
    framed: bool = False


@dataclass(frozen=True)
class Axis:
    """Args:
    title: What it is.
    names: Of its places, in order.
    """

    title: str
    names: Sequence[str]


def heatmap(name: str, rows: Axis, columns: Axis, tiles: Sequence[Tile], most: float, unit: str) -> str:
    """Tiles where there are some; every other place is an empty outline.

    Args:
        most: The change of the deepest colour, above 0; the depth goes with the square root, so that small
            gains can be seen beside great losses.
        unit: Of the changes, for the scale below.
    """
    wide = (WIDTH - _LEFT - _RIGHT) / len(columns.names)
    high = 18.0 if len(rows.names) <= 16 else 14.0 if len(rows.names) <= 40 else 10.0
    bottom = _TOP + high * len(rows.names)
    parts = [
        text("start", 0, 11, rows.title, "heat"),
        text("middle", (_LEFT + WIDTH - _RIGHT) / 2, 11, columns.title, "heat"),
        *_row_names(rows.names, high),
        *_column_names(columns.names, wide),
        *_empty(rows, columns, tiles, wide, high),
    ]
    ordered = sorted(tiles, key=lambda one: (one.row, one.column))
    stop = next((index for index, one in enumerate(ordered) if one.framed), 0)
    parts += [_tile(one, wide, high, most, index == stop) for index, one in enumerate(ordered)]
    return svg(bottom + 42, name, [*parts, *_legend(bottom + 10, most, unit)])


def depth(change: float, most: float) -> float:
    """Opacity of a tile's colour, 0 to 1."""
    return math.sqrt(min(1.0, abs(change) / most))


def brief(value: float) -> str:
    """A signed number of at most four signs."""
    said = f"{value:+.1f}" if abs(value) < 9.95 else f"{value:+.0f}"
    return "0" if float(said) == 0 else said


def _row_names(names: Sequence[str], high: float) -> list[str]:
    every = math.ceil(_NAME_HIGH / high)
    return [
        text("end", _LEFT - 5, _TOP + high * (index + 0.5) + 3.5, name, "heat")
        for index, name in enumerate(names)
        if index % every == 0
    ]


def _column_names(names: Sequence[str], wide: float) -> list[str]:
    every = math.ceil(_NAME_WIDE / wide)
    return [
        text("middle", _LEFT + wide * (index + 0.5), _TOP - 6, name, "heat")
        for index, name in enumerate(names)
        if index % every == 0
    ]


def _empty(rows: Axis, columns: Axis, tiles: Sequence[Tile], wide: float, high: float) -> list[str]:
    taken = {(one.row, one.column) for one in tiles}
    return [
        _box("none", row, column, wide, high)
        for row in range(len(rows.names))
        for column in range(len(columns.names))
        if (row, column) not in taken
    ]


def _tile(one: Tile, wide: float, high: float, most: float, stop: bool) -> str:
    across, down = _LEFT + wide * (one.column + 0.5), _TOP + high * (one.row + 0.5)
    inner = [_box("ground", one.row, one.column, wide, high)]
    if one.change is None or not math.isfinite(one.change):
        inner.append(f'<circle class="ring" cx="{across:.1f}" cy="{down:.1f}" r="3"/>')
    else:
        kind = "gain" if one.change > 0 else "loss"
        inner.append(_box(kind, one.row, one.column, wide, high, depth(one.change, most)))
        if wide >= _NUMBER_WIDE and high >= _NUMBER_HIGH:
            inner.append(text("middle", across, down + 3.5, brief(one.change), "heat ink"))
    inner.append(_box("frame chosen" if one.framed else "frame", one.row, one.column, wide, high))
    return marked("tile", one.tip, inner, (one.row, one.column), stop)


def _box(kind: str, row: int, column: int, wide: float, high: float, opacity: float = 1.0) -> str:
    x, y = _LEFT + wide * column + _GAP / 2, _TOP + high * row + _GAP / 2
    return _rectangle(kind, x, y, wide - _GAP, high - _GAP, opacity)


def _rectangle(kind: str, x: float, y: float, wide: float, high: float, opacity: float = 1.0) -> str:
    seen = "" if opacity == 1 else f' fill-opacity="{opacity:.3f}"'
    size = f'width="{wide:.1f}" height="{high:.1f}"'
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size} rx="1.5"{seen}/>'


def _legend(top: float, most: float, unit: str) -> list[str]:
    """The scale: as many steps to either side."""
    wide = (WIDTH - _LEFT - _RIGHT) / (2 * _STEPS + 1)
    parts = []
    for index, step in enumerate(range(-_STEPS, _STEPS + 1)):
        x, share = _LEFT + wide * index, abs(step) / _STEPS
        kind = "gain" if step > 0 else "loss"
        parts.append(_rectangle("ground", x, top, wide, 8))
        parts.append(_rectangle(kind, x, top, wide, 8, share))
        value = math.copysign(most * share**2, step)
        parts.append(text("middle", x + wide / 2, top + 19, brief(value), "heat"))
    return [*parts, text("middle", (_LEFT + WIDTH - _RIGHT) / 2, top + 31, unit, "heat")]
