"""Two drawings as SVG: how much of the allowed drop was used, and score against size or latency."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kanna.reporting.svg import WIDTH, columns, cut, line, marked, svg, text

_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 12, 40
# About the width of a letter and the height of a line of a label.
_CHARACTER, _LINE = 6.4, 13
# A forest plot shows no more than this of what is better than the base, and of what is worse than allowed.
_FAR_LEFT, _FAR_RIGHT = -2.0, 3.0
# An interval across goes on beyond the drawing where it is wider than this, over the largest x.
_WIDEST = 1.6


@dataclass(frozen=True)
class Bar:
    """One task of a forest plot.

    Args:
        label: Whose it is.
        middle: Change over the allowed change: 0 is none, 1 the limit.
        low: Better end of the interval.
        high: Worse end.
        status: pass, fail or undecided.
        tip: Shown on hover.
    """

    label: str
    middle: float
    low: float
    high: float
    status: str
    tip: str


@dataclass(frozen=True)
class Dot:
    """One model of a scatter plot.

    Args:
        label: Its name.
        x: Across.
        y: Up.
        low: Lower end of an interval of y; equal to y for none.
        high: Upper end.
        status: pass, fail, undecided, or empty for what was not judged.
        tip: Shown on hover.
        side: Ends of an interval of x; None for none.
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    status: str
    tip: str
    side: tuple[float, float] | None = None


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between the two, a power of ten times 1, 2 or 5 apart.

    Raises:
        ValueError: `high` is not above `low`.
    """
    if not high > low:
        raise ValueError(f"no range from {low} to {high}")
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def forest(bars: Sequence[Bar]) -> str:
    """One line per task: 0 is "as the base", 1 the whole allowed drop, further right is worse.

    What lies far outside is drawn as an arrow at the edge, so that the limit stays in sight.
    """
    row, top = 44, 24
    height = top + row * len(bars) + 40
    ends = [min(max(value, _FAR_LEFT), _FAR_RIGHT) for bar in bars for value in (bar.low, bar.high)]
    low, high = min([-0.3, *ends]), max([1.3, *ends])
    pad = 0.06 * (high - low)
    scale = Scale(low - pad, high + pad, 24, WIDTH - 24)
    bottom = height - 34
    # Lines stop where a task's name stands, which they would cross out.
    spans = [(top + row * index + 18, top + row * (index + 1)) for index in range(len(bars))]
    parts = [
        *(line("limit", scale(1), start, scale(1), end) for start, end in spans),
        *(line("zero", scale(0), start, scale(0), end) for start, end in spans),
        text("middle", scale(1), 11, "all of it used", "limit-label"),
    ]
    marks = ticks(scale.low, scale.high, 6)
    parts += [text("middle", scale(value), bottom + 13, f"{100 * value:.0f} %") for value in marks]
    parts.append(text("middle", WIDTH / 2, height - 3, "share of the allowed drop that was used", "axis"))
    parts += [_bar(bar, scale, top + row * index) for index, bar in enumerate(bars)]
    return svg(height, "Share of the allowed drop used, per task", parts)


def _bar(bar: Bar, scale: "Scale", top: float) -> str:
    y = top + 30
    inner = [
        f'<rect class="hit" x="0" y="{top:.1f}" width="{WIDTH}" height="38"/>',
        text("start", 14, top + 14, cut(bar.label, 52), "label"),
        line("interval", scale(bar.low), y, scale(bar.high), y),
        *(_arrow(scale(end), y, end) for end in (bar.low, bar.high) if not _FAR_LEFT <= end <= _FAR_RIGHT),
        *_outside(bar.middle, scale, y),
        f'<circle cx="{scale(bar.middle):.1f}" cy="{y:.1f}" r="5"/>',
    ]
    return marked(bar.status, bar.tip, inner)


def _arrow(x: float, y: float, end: float) -> str:
    """Points to where the bar goes on."""
    side = 1 if end > 0 else -1
    foot, tip = x + 7 * side, x + 15 * side
    return f'<path class="arrow" d="M{foot:.1f} {y - 5:.1f} L{tip:.1f} {y:.1f} L{foot:.1f} {y + 5:.1f} Z"/>'


def _outside(middle: float, scale: "Scale", y: float) -> list[str]:
    """The number of a mark that would lie outside, in words beside it."""
    if _FAR_LEFT <= middle <= _FAR_RIGHT:
        return []
    anchor, away = ("end", -10) if middle > 0 else ("start", 10)
    return [text(anchor, scale(middle) + away, y + 4, f"{100 * middle:,.0f} %", "label")]


def scatter(dots: Sequence[Dot], across: str, up: str, percent: bool = False) -> str:
    """Score against what it costs; a whisker is the interval of the score."""
    height = 250
    x = Scale.around(_across(dots), _LEFT, WIDTH - _RIGHT)
    y = Scale.around([value for dot in dots for value in (dot.low, dot.y, dot.high)], height - _BOTTOM, _TOP)
    if percent:
        y = replace(y, high=max(min(y.high, 1.0), max(dot.high for dot in dots)))
    parts = []
    for value in ticks(y.low, y.high):
        parts.append(line("grid", _LEFT, y(value), WIDTH - _RIGHT, y(value)))
        shown = f"{100 * value:.6g} %" if percent else f"{value:.6g}"
        parts.append(text("end", _LEFT - 5, y(value) + 4, shown))
    for value in ticks(x.low, x.high):
        parts.append(line("grid", x(value), _TOP, x(value), height - _BOTTOM))
        parts.append(text("middle", x(value), height - _BOTTOM + 14, f"{value:.6g}"))
    parts.append(text("middle", (_LEFT + WIDTH - _RIGHT) / 2, height - 6, across, "axis"))
    parts += [_dot(dot, x, y, label) for dot, label in zip(dots, _labels(dots, x, y), strict=True)]
    return svg(height, f"{up} against {across}", parts)


def _across(dots: Sequence[Dot]) -> list[float]:
    """All x, and ends of intervals, but for what is so far out that the dots would come to lie as one."""
    places = [dot.x for dot in dots]
    least, most = min(places) / _WIDEST, max(places) * _WIDEST
    return places + [min(max(end, least), most) for dot in dots for end in dot.side or ()]


def _dot(dot: Dot, x: "Scale", y: "Scale", label: "_Label | None") -> str:
    across, up = x(dot.x), y(dot.y)
    inner = [
        f'<circle class="hit" cx="{across:.1f}" cy="{up:.1f}" r="16"/>',
        *([line("interval", across, y(dot.low), across, y(dot.high))] if dot.high > dot.low else []),
        *([] if dot.side is None else [line("interval", x(dot.side[0]), up, x(dot.side[1]), up)]),
        f'<circle cx="{across:.1f}" cy="{up:.1f}" r="6"/>',
        *([] if label is None else [text("start", label.x, label.y, label.text, "label")]),
    ]
    return marked(dot.status, dot.tip, inner)


@dataclass(frozen=True)
class _Label:
    """A text that begins at x, y."""

    x: float
    y: float
    text: str

    @property
    def end(self) -> float:
        return self.x + _CHARACTER * columns(self.text)

    def hits(self, other: "_Label") -> bool:
        return self.x < other.end and other.x < self.end and abs(self.y - other.y) < _LINE

    def covers(self, across: float, up: float) -> bool:
        """Whether a dot lies under it."""
        return self.x - 6 < across < self.end + 6 and self.y - _LINE - 3 < up < self.y + 8

    def crosses(self, across: float, high: float, low: float) -> bool:
        """Whether a whisker runs through it."""
        return (
            high < low and self.x - 2 < across < self.end + 2 and high < self.y + 2 and low > self.y - _LINE
        )

    def lies_on(self, left: float, right: float, up: float) -> bool:
        """Whether a level whisker runs through it."""
        return left < right and self.x < right and left < self.end and self.y - _LINE < up < self.y + 3


def _labels(dots: Sequence[Dot], x: "Scale", y: "Scale") -> list[_Label | None]:
    """Names beside their dots, within the axes, where they cover no dot, whisker or other name; else only the
    tip has it."""
    points = [(x(dot.x), y(dot.y)) for dot in dots]
    whiskers = [(x(dot.x), y(dot.high), y(dot.low)) for dot in dots]
    level = [(x(dot.side[0]), x(dot.side[1]), y(dot.y)) for dot in dots if dot.side is not None]
    placed: list[_Label | None] = []
    for dot, (across, up) in zip(dots, points, strict=True):
        name = cut(dot.label, 24)
        wide = _CHARACTER * columns(name)
        corners = [(left, up + down) for down in (-8, 17) for left in (across + 8, across - 8 - wide)]
        fitting = [
            _Label(*corner, name)
            for corner in corners
            if corner[0] >= _LEFT and corner[0] + wide <= WIDTH - 4
        ]
        free = (
            label
            for label in fitting
            if not any(label.hits(other) for other in placed if other is not None)
            and not any(label.covers(*point) for point in points)
            and not any(label.crosses(*whisker) for whisker in whiskers)
            and not any(label.lies_on(*whisker) for whisker in level)
        )
        placed.append(next(free, None))
    return placed


@dataclass(frozen=True)
class Scale:
    """From values in low..high to places in start..end."""

    low: float
    high: float
    start: float
    end: float

    @staticmethod
    def around(values: Sequence[float], start: float, end: float) -> "Scale":
        """All values with a margin; a single one gets a range of its own size."""
        low, high = min(values), max(values)
        pad = 0.12 * (high - low) or abs(high) * 0.1 or 1.0
        return Scale(low - pad, high + pad, start, end)

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)
