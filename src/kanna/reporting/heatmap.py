"""A map over rows and columns: of changes (blue is better, orange worse, paler is less), or of shares (blue).

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


def heatmap(
    name: str,
    rows: Axis,
    columns: Axis,
    tiles: Sequence[Tile],
    most: float,
    unit: str,
    signed: bool = True,
) -> str:
    """Tiles where there are some; every other place is an empty outline.

    Args:
        most: The change of the deepest colour, above 0; the depth goes with the square root, so that small
            gains can be seen beside great losses.
        unit: Of the changes, for the scale below.
        signed: Whether they are changes; if not, they are numbers from 0 to `most`, whose depth is linear.
    """
    wide = (WIDTH - _LEFT - _RIGHT) / len(columns.names)
    high = 18.0 if len(rows.names) <= 16 else 14.0 if len(rows.names) <= 40 else 10.0
    bottom = _TOP + high * len(rows.names)
    taken = {(tile.row, tile.column) for tile in tiles}
    parts = [
        text("start", 0, 11, rows.title, "heat"),
        text("middle", (_LEFT + WIDTH - _RIGHT) / 2, 11, columns.title, "heat"),
        *(
            text("end", _LEFT - 5, _TOP + high * (index + 0.5) + 3.5, row, "heat")
            for index, row in _named(rows, _NAME_HIGH / high)
        ),
        *(
            text("middle", _LEFT + wide * (index + 0.5), _TOP - 6, column, "heat")
            for index, column in _named(columns, _NAME_WIDE / wide)
        ),
        *(
            _box("none", row, column, wide, high)
            for row in range(len(rows.names))
            for column in range(len(columns.names))
            if (row, column) not in taken
        ),
    ]
    ordered = sorted(tiles, key=lambda tile: (tile.row, tile.column))
    stop = next((index for index, tile in enumerate(ordered) if tile.framed), 0)
    measure = _Measure(most, signed)
    parts += [_tile(tile, wide, high, measure, index == stop) for index, tile in enumerate(ordered)]
    return svg(bottom + 48, name, [*parts, *_legend(bottom + 10, measure, unit)])


@dataclass(frozen=True)
class _Measure:
    """How a number is shown; see `heatmap`."""

    most: float
    signed: bool

    def words(self, value: float) -> str:
        return brief(value) if self.signed else f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"

    def opacity(self, value: float) -> float:
        return depth(value, self.most) if self.signed else min(1.0, value / self.most)

    def steps(self) -> list[float]:
        """Values of the scale, an equal difference of depth apart."""
        if not self.signed:
            return [self.most * step / (2 * _STEPS) for step in range(2 * _STEPS + 1)]
        return [math.copysign(self.most * (step / _STEPS) ** 2, step) for step in range(-_STEPS, _STEPS + 1)]


def depth(change: float, most: float) -> float:
    """Opacity of a tile's colour, 0 to 1."""
    return math.sqrt(min(1.0, abs(change) / most))


def brief(value: float) -> str:
    """A signed number of at most four signs."""
    signed = f"{value:+.1f}" if abs(value) < 9.95 else f"{value:+.0f}"
    return "0" if float(signed) == 0 else signed


def _named(axis: Axis, tiles_wide: float) -> list[tuple[int, str]]:
    """Places with their names, as far apart as a name is wide."""
    return list(enumerate(axis.names))[:: math.ceil(tiles_wide)]


def _tile(tile: Tile, wide: float, high: float, measure: _Measure, stop: bool) -> str:
    across, down = _LEFT + wide * (tile.column + 0.5), _TOP + high * (tile.row + 0.5)
    inner = [_box("ground", tile.row, tile.column, wide, high)]
    if tile.change is None or not math.isfinite(tile.change):
        inner.append(f'<circle class="ring" cx="{across:.1f}" cy="{down:.1f}" r="3"/>')
    else:
        kind = "gain" if tile.change > 0 else "loss"
        inner.append(_box(kind, tile.row, tile.column, wide, high, measure.opacity(tile.change)))
        if wide >= _NUMBER_WIDE and high >= _NUMBER_HIGH:
            inner.append(text("middle", across, down + 3.5, measure.words(tile.change), "heat ink"))
    inner.append(_box("frame chosen" if tile.framed else "frame", tile.row, tile.column, wide, high))
    return marked("tile", tile.tip, inner, (tile.row, tile.column), stop)


def _box(kind: str, row: int, column: int, wide: float, high: float, opacity: float = 1.0) -> str:
    x, y = _LEFT + wide * column + _GAP / 2, _TOP + high * row + _GAP / 2
    return _rectangle(kind, x, y, wide - _GAP, high - _GAP, opacity)


def _rectangle(kind: str, x: float, y: float, wide: float, high: float, opacity: float = 1.0) -> str:
    seen = "" if opacity == 1 else f' fill-opacity="{opacity:.3f}"'
    size = f'width="{wide:.1f}" height="{high:.1f}"'
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size} rx="1.5"{seen}/>'


def _legend(top: float, measure: _Measure, unit: str) -> list[str]:
    """The scale: as many steps to either side, or up from 0."""
    steps = measure.steps()
    wide = (WIDTH - _LEFT - _RIGHT) / len(steps)
    parts = []
    for index, value in enumerate(steps):
        x, kind = _LEFT + wide * index, "gain" if value > 0 else "loss"
        parts.append(_rectangle("ground", x, top, wide, 8))
        parts.append(_rectangle(kind, x, top, wide, 8, measure.opacity(value)))
        parts.append(text("middle", x + wide / 2, top + 19, measure.words(value), "heat"))
    return [*parts, text("middle", (_LEFT + WIDTH - _RIGHT) / 2, top + 36, unit, "heat")]
