"""Two drawings as SVG: how much of the allowed drop was used, and score against size or latency.

Lengths are in units of the drawing, which is 360 wide so that its text stays readable on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 12, 40


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
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    status: str
    tip: str


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
    """One line per task: 0 is "as the base", 1 the whole allowed drop, further right is worse."""
    row, top = 40, 22
    height = top + row * len(bars) + 34
    ends = [value for bar in bars for value in (bar.low, bar.high) if math.isfinite(value)]
    low, high = min([-0.2, *ends]), max([1.2, *ends])
    pad = 0.05 * (high - low)
    scale = _Scale(low - pad, high + pad, 14, _WIDTH - 14)
    bottom = height - 30
    parts = [
        _line("limit", scale(1), top - 6, scale(1), bottom),
        _line("zero", scale(0), top - 6, scale(0), bottom),
        _text("end", scale(1) - 3, 10, "all of it used", "limit-label"),
        _text("middle", scale(0), bottom + 13, "as the base"),
    ]
    marks = [value for value in ticks(scale.low, scale.high, 6) if abs(value) > 1e-9]
    parts += [_text("middle", scale(value), bottom + 13, f"{100 * value:.0f} %") for value in marks
              if abs(scale(value) - scale(0)) > 44]  # fmt: skip
    parts.append(_text("middle", _WIDTH / 2, height - 3, "share of the allowed drop that was used", "axis"))
    for index, bar in enumerate(bars):
        parts.append(_bar(bar, scale, top + row * index))
    return _svg(height, "Share of the allowed drop used, per task", parts)


def _bar(bar: Bar, scale: "_Scale", top: float) -> str:
    y = top + 26
    inner = [
        _text("start", 14, top + 14, _cut(bar.label, 52), "label"),
        _line("interval", scale(bar.low), y, scale(bar.high), y),
        f'<circle cx="{scale(bar.middle):.1f}" cy="{y:.1f}" r="5"/>',
    ]
    return _marked(bar.status, bar.tip, inner)


def scatter(dots: Sequence[Dot], across: str, up: str, percent: bool = False) -> str:
    """Score against what it costs; a whisker is the interval of the score."""
    height = 250
    x = _Scale.around([dot.x for dot in dots], _LEFT, _WIDTH - _RIGHT)
    y = _Scale.around([value for dot in dots for value in (dot.low, dot.y, dot.high)], height - _BOTTOM, _TOP)
    parts = []
    for value in ticks(y.low, y.high):
        parts.append(_line("grid", _LEFT, y(value), _WIDTH - _RIGHT, y(value)))
        shown = f"{100 * value:.6g} %" if percent else f"{value:.6g}"
        parts.append(_text("end", _LEFT - 5, y(value) + 4, shown))
    for value in ticks(x.low, x.high):
        parts.append(_line("grid", x(value), _TOP, x(value), height - _BOTTOM))
        parts.append(_text("middle", x(value), height - _BOTTOM + 14, f"{value:.6g}"))
    parts.append(_text("middle", (_LEFT + _WIDTH - _RIGHT) / 2, height - 6, across, "axis"))
    parts += [_dot(dot, x, y) for dot in dots]
    return _svg(height, f"{up} against {across}", parts)


def _dot(dot: Dot, x: "_Scale", y: "_Scale") -> str:
    across, up = x(dot.x), y(dot.y)
    side = "end" if across > _WIDTH * 0.62 else "start"
    inner = [
        *([_line("interval", across, y(dot.low), across, y(dot.high))] if dot.high > dot.low else []),
        f'<circle cx="{across:.1f}" cy="{up:.1f}" r="6"/>',
        _text(side, across + (-9 if side == "end" else 9), up - 7, _cut(dot.label, 24), "label"),
    ]
    return _marked(dot.status, dot.tip, inner)


@dataclass(frozen=True)
class _Scale:
    """From values in low..high to places in start..end."""

    low: float
    high: float
    start: float
    end: float

    @staticmethod
    def around(values: Sequence[float], start: float, end: float) -> "_Scale":
        """All values with a margin; a single one gets a range of its own size."""
        low, high = min(values), max(values)
        pad = 0.12 * (high - low) or abs(high) * 0.1 or 1.0
        return _Scale(low - pad, high + pad, start, end)

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _svg(height: float, name: str, parts: Sequence[str]) -> str:
    inside = "".join(parts)
    said = escape(name)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{said}" '
        f'xmlns="http://www.w3.org/2000/svg">{inside}</svg>'
    )


def _marked(status: str, tip: str, inner: Sequence[str]) -> str:
    kind = escape(status.replace(" ", "-") or "plain")
    said = escape(tip)
    return f'<g class="mark {kind}" tabindex="0" data-tip="{said}" aria-label="{said}">{"".join(inner)}</g>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(anchor: str, x: float, y: float, text: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
