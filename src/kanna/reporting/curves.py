"""Lines over time as SVG: how something went, with marks where something happened."""

from collections.abc import Sequence
from dataclasses import dataclass

from kanna.reporting.charts import Scale, ticks
from kanna.reporting.svg import WIDTH, cut, line, marked, svg, text

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 48, 74, 12, 40, 250
_MOST_POINTS = 200
_LABEL_HEIGHT, _LETTERS = 13, 11


@dataclass(frozen=True)
class Curve:
    """One line.

    Args:
        label: Its name, written at its end.
        points: (x, y), x ascending; at least one.
        tip: Shown on hover.
    """

    label: str
    points: Sequence[tuple[float, float]]
    tip: str


def curves(lines: Sequence[Curve], across: str, up: str, marks: Sequence[float] = ()) -> str:
    """Several lines over one axis.

    Args:
        marks: Places on the axis that get a thin vertical line.
    """
    every = [point for curve in lines for point in curve.points]
    x = Scale.around([point[0] for point in every], _LEFT, WIDTH - _RIGHT)
    y = Scale.around([point[1] for point in every], _HEIGHT - _BOTTOM, _TOP)
    parts = [line("zero", x(mark), _TOP, x(mark), _HEIGHT - _BOTTOM) for mark in marks]
    for value in ticks(y.low, y.high):
        parts.append(line("grid", _LEFT, y(value), WIDTH - _RIGHT, y(value)))
        parts.append(text("end", _LEFT - 5, y(value) + 4, f"{value:.6g}"))
    for value in ticks(x.low, x.high):
        parts.append(text("middle", x(value), _HEIGHT - _BOTTOM + 14, f"{value:.6g}"))
    parts.append(text("middle", (_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, across, "axis"))
    ends = _apart([y(curve.points[-1][1]) for curve in lines])
    for number, (curve, end) in enumerate(zip(lines, ends, strict=True)):
        parts.append(_curve(curve, number, x, y, end))
    return svg(_HEIGHT, f"{up} over {across}", parts)


def _curve(curve: Curve, number: int, x: Scale, y: Scale, end: float) -> str:
    """The line, and its name where it ends."""
    some = curve.points[:: max(1, len(curve.points) // _MOST_POINTS)]
    points = [*some, curve.points[-1]]
    way = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    inner = [
        f'<polyline class="curve curve-{number % 8}" points="{way}"/>',
        text("start", WIDTH - _RIGHT + 6, end + 4, cut(curve.label, _LETTERS), "label"),
    ]
    return marked("", curve.tip, inner)


def _apart(places: Sequence[float]) -> list[float]:
    """The same places, moved down as far as names of one height need."""
    moved = [0.0] * len(places)
    last = -1e9
    for index in sorted(range(len(places)), key=lambda i: places[i]):
        last = moved[index] = max(places[index], last + _LABEL_HEIGHT)
    over = max(0.0, max(moved, default=0.0) - (_HEIGHT - 4))
    return [place - over for place in moved]
