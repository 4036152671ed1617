"""Many small marks as SVG: of each the same quantity before and after; what is gone lies on the axis."""

from collections.abc import Sequence

from kanna.reporting.charts import Scale, ticks
from kanna.reporting.svg import WIDTH, line, marked, svg, text

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 48, 14, 12, 40, 250
_MOST = 400


def points(pairs: Sequence[tuple[float, float]], across: str, up: str, tips: tuple[str, str]) -> str:
    """A dot a pair, a short stroke on the axis where the second is 0, and the line on which nothing changed.

    Args:
        pairs: Not below 0; of very many only some are drawn.
        tips: Of the dots, and of the strokes.
    """
    some = pairs[:: -(-len(pairs) // _MOST)] if pairs else []
    most = max((value for pair in pairs for value in pair), default=0.0) or 1.0
    x = Scale(0.0, 1.05 * most, _LEFT, WIDTH - _RIGHT)
    y = Scale(0.0, 1.05 * most, _HEIGHT - _BOTTOM, _TOP)
    parts = [line("same", x(0), y(0), x(most), y(most))]
    for value in ticks(0, 1.05 * most):
        parts.append(line("grid", _LEFT, y(value), WIDTH - _RIGHT, y(value)))
        parts.append(text("end", _LEFT - 5, y(value) + 4, f"{value:.6g}"))
        parts.append(text("middle", x(value), _HEIGHT - _BOTTOM + 14, f"{value:.6g}"))
    parts.append(text("middle", (_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, across, "axis"))
    gone = [line("gone", x(before), y(0) - 7, x(before), y(0)) for before, after in some if after == 0]
    stay = [
        f'<circle class="stays" cx="{x(before):.1f}" cy="{y(after):.1f}" r="2.6"/>'
        for before, after in some
        if after > 0
    ]
    parts += [marked("", tip, inner) for tip, inner in zip(tips, (stay, gone), strict=True) if inner]
    return svg(_HEIGHT, f"{up} against {across}", parts)
