"""Lines over time as SVG: how something went, with marks where something happened."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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
    parts = [line("event", x(mark), _TOP, x(mark), _HEIGHT - _BOTTOM) for mark in marks]
    for value in ticks(y.low, y.high):
        parts.append(line("grid", _LEFT, y(value), WIDTH - _RIGHT, y(value)))
        parts.append(text("end", _LEFT - 5, y(value) + 4, f"{value:.6g}"))
    for value in ticks(x.low, x.high):
        parts.append(text("middle", x(value), _HEIGHT - _BOTTOM + 14, f"{value:.6g}"))
    parts.append(text("middle", (_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, across, "axis"))
    ends = apart([y(curve.points[-1][1]) for curve in lines], _LABEL_HEIGHT, _TOP + 6, _HEIGHT - _BOTTOM - 4)
    for number, (curve, end) in enumerate(zip(lines, ends, strict=True)):
        parts.append(_curve(curve, number, x, y, end))
    return svg(_HEIGHT, f"{up} over {across}", parts)


def _curve(curve: Curve, number: int, x: Scale, y: Scale, end: float) -> str:
    """The line, and its name near to where it ends; a single point is a dot."""
    some = curve.points[:: max(1, len(curve.points) // _MOST_POINTS)]
    points = [(x(a), y(b)) for a, b in (*some, curve.points[-1])]
    last = points[-1]
    way = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    inner = [
        f'<polyline class="curve curve-{number % 8}" points="{way}"/>',
        *([f'<circle cx="{last[0]:.1f}" cy="{last[1]:.1f}" r="3.5"/>'] if len(curve.points) == 1 else []),
        line("event", last[0] + 2, last[1], WIDTH - _RIGHT + 3, end),
        text("start", WIDTH - _RIGHT + 6, end + 4, cut(curve.label, _LETTERS), "label"),
    ]
    return marked("", curve.tip, inner)


def smoothed(losses: Sequence[float], most: int = 10) -> list[float]:
    """A running average over a tenth of them, so that the way can be seen through the noise of batches.

    Args:
        most: Over how many at most; an average over more than a few of a short run would hide where it ended.
    """
    share = 1 / min(most, max(1.0, len(losses) / 10))
    return list(accumulate(losses, lambda mean, loss: (1 - share) * mean + share * loss))


def apart(places: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """The same places, moved as little as a distance between any two needs, within low..high.

    With the i-th place less i distances the task is to find the nearest series that does not fall: neighbours
    that fall are pooled at their mean.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, count = places[index] - rank * distance, 1
        while pools and pools[-1][0] > mean:
            other, size = pools.pop()
            mean, count = (other * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    level = [mean for mean, count in pools for _ in range(count)]
    top = max(low, high - (len(places) - 1) * distance)
    moved = [0.0] * len(places)
    for rank, index in enumerate(order):
        moved[index] = min(max(level[rank], low), top) + rank * distance
    return moved
