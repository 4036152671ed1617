"""What a report shows of sweeps: every point that was tried, and the best one on rows that chose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kanna.methods.merge.tuning.results import SWEEP, Sweep
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Paragraph, Section, Table, Verdict
from kanna.reporting.curves import Curve, curves
from kanna.reporting.heatmap import Axis, Tile, heatmap
from kanna.reporting.views import Result, View
from kanna.reporting.wording import filled, percent, told_apart
from kanna.tasks.metrics.shown import change, shown

_CAPTION = (
    "Mean over tasks of the normalised score on the calibration rows: 0 is the base, 100 what experts have."
)


def _draw(results: Sequence[Result]) -> tuple[list[Verdict], list[Section]]:
    names = [f"Sweep of {result.at.data['method']}" for result in results]
    titles = told_apart(names, (result.at.source for result in results))
    return [], [Section(title, sweep_blocks(one.at)) for one, title in zip(results, titles, strict=True)]


def sweep_blocks(at: At) -> list[Block]:
    """Everything that a sweep holds."""
    shown_points = [_points(at)] if len(at.data["axes"]) != 2 else []
    return [
        tasks_table(at),
        *_chart(at),
        *shown_points,
        Paragraph(_chosen(at)),
        *judged_blocks(at.get("test")),
    ]


def tasks_table(at: At) -> Table:
    """Tasks, and how far their experts are from the base on the rows that choose."""
    rows: list[list[Cell]] = [
        [
            one.data["expert"],
            one.data["task"],
            one.data["metric"],
            one.cell("calibration_rows"),
            one.cell("base", ".4f"),
            one.cell("gain", "+.4f"),
            one.cell("test_rows"),
        ]
        for one in at["tasks"].items()
    ]
    columns = ("expert", "task", "metric", ">calibration rows", ">base", ">gain of the expert", ">test rows")
    return Table("Tasks", columns, rows, MEASURED)


def _points(at: At) -> Table:
    experts = [one["expert"] for one in at.data["tasks"]]
    rows: list[list[Cell]] = []
    for number, point in enumerate(at["points"].items()):
        values = [one.figure(f"{one.data:g}") for one in point["values"].items()]
        scores = [point["scores"].cell(name, ".4f") for name in experts]
        mark = "chosen" if number == at.data["chosen"] else ""
        rows.append(
            [*values, *scores, point.cell("normalised", percent), point.cell("probability", ".4f"), mark]
        )
    names = [f">{axis['name']}" for axis in at.data["axes"]]
    columns = (*names, *(f">{name}" for name in experts), ">normalised", ">probability", "")
    return Table("On the calibration rows", *filled(columns, rows), MEASURED)


def _chart(at: At) -> list[Block]:
    axes = at.data["axes"]
    if len(axes) == 2:
        return [_map(at)]
    points = at.data["points"]
    if len(axes) > 2 or len(points) < 2:
        return []
    lines = [
        Curve(name, found, f"{name}: {max(y for _, y in found):.1f} at best") for name, found in _lines(at)
    ]
    drawing = curves(lines, axes[0]["name"], "normalised score, %")
    return [Chart("Scores over the values", drawing, _CAPTION, [line.tip for line in lines])]


def _lines(at: At) -> list[tuple[str, list[tuple[float, float]]]]:
    points = sorted(at.data["points"], key=lambda point: float(point["values"][0]))
    lines = [("mean", [(point["values"][0], 100 * point["normalised"]) for point in points])]
    for task in at.data["tasks"]:
        name, base, gain = task["expert"], task["base"], task["gain"]
        lines.append(
            (name, [(point["values"][0], 100 * (point["scores"][name] - base) / gain) for point in points])
        )
    return lines


def _map(at: At) -> Chart:
    down, across = at.data["axes"]
    points = at.data["points"]
    tiles = []
    for number, point in enumerate(points):
        row, column = divmod(number, len(across["values"]))
        first, second = point["values"]
        tip = f"{down['name']} {first:g}, {across['name']} {second:g}: {percent(point['normalised'])}"
        score = max(0.0, 100 * point["normalised"])
        tiles.append(Tile(row, column, score, tip, framed=number == at.data["chosen"]))
    drawing = heatmap(
        "Normalised scores",
        Axis(down["name"], [f"{value:g}" for value in down["values"]]),
        Axis(across["name"], [f"{value:g}" for value in across["values"]]),
        tiles,
        max(1.0, *(tile.change or 0.0 for tile in tiles)),
        "normalised score, %",
        signed=False,
    )
    return Chart("Scores over both values", drawing, _CAPTION, [tile.tip for tile in tiles], _points(at))


def _chosen(at: At) -> list[str]:
    point = at.data["points"][at.data["chosen"]]
    pairs = zip(at.data["axes"], point["values"], strict=True)
    said = ", ".join(f"{axis['name']} {value:g}" for axis, value in pairs)
    gained = percent(point["normalised"])
    return [f"Chosen: {said}, with {gained} of what the experts gain, on the calibration rows."]


def judged_blocks(at: At | None) -> list[Block]:
    """The chosen merge on the rows that chose nothing."""
    if at is None:
        return []
    rows: list[list[Cell]] = []
    for one in at["tasks"].items():
        metric = one.data["metric"]
        scores = [one.cell(key, partial(shown, metric)) for key in _SCORES]
        rows.append(
            [
                one.data["expert"],
                metric,
                one.cell("rows"),
                *scores,
                one.cell("normalised", percent),
                *(tuple(_beside(one[key], metric)) for key in ("beside_expert", "beside_base")),
                one.data["beside_expert"]["status"] if at.data["tolerance"] else "not judged",
            ]
        )
    title = "On the test rows, which chose nothing"
    blocks: list[Block] = [Table(title, *filled(_JUDGED, rows), MEASURED)]
    if at.data["normalised"] is not None:
        mean = at["normalised"].figure(percent(at.data["normalised"]))
        blocks.append(Paragraph(["Mean normalised score on the test rows: ", mean, "."]))
    return [*blocks, *_guards(at)]


def _guards(at: At) -> list[Block]:
    if not at.data.get("guards"):
        return []
    rows: list[list[Cell]] = []
    for one in at["guards"].items():
        metric = one.data["metric"]
        scores = [one.cell(key, partial(shown, metric)) for key in ("base", "merged")]
        beside = _beside(one["beside_base"], metric)[0]
        status = one.data["beside_base"]["status"]
        rows.append([one.data["task"], metric, *scores, beside, one.data["beside_base"]["tolerance"], status])
    columns = ("guard", "metric", ">base", ">merge", ">beside the base", ">allowed", "verdict")
    return [Table("What must not suffer", columns, rows, MEASURED)]


_SCORES = ("base", "of_expert", "merged")
_JUDGED = (
    "expert",
    "metric",
    ">rows",
    ">base",
    ">expert",
    ">merge",
    ">normalised",
    ">beside the expert",
    ">beside the base",
    "verdict",
)


def _beside(at: At, metric: str) -> list[str]:
    """A difference with its interval."""
    low, high = at.data["interval"]
    return [f"{change(metric, at.data['difference'])} ({change(metric, low)} to {change(metric, high)})"]


VIEWS: tuple[View, ...] = (View("merge-sweep", Sweep, _draw, file=SWEEP, key="sweep"),)
