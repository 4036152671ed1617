"""What a report shows of Basel: bases by role over time, what is left of each matrix, and the losses."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from kanna.methods.basel.results import RESULT, Basel
from kanna.models.matrix import role_key
from kanna.reporting import heatmap
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Paragraph, Section, Table, Verdict
from kanna.reporting.curves import Curve, curves
from kanna.reporting.views import Result, View
from kanna.reporting.wording import percent, told_apart


def _draw(results: Sequence[Result]) -> tuple[list[Verdict], list[Section]]:
    names = [f"Basel of {result.at.data['model']}" for result in results]
    titles = told_apart(names, (result.at.source for result in results))
    return [], [_section(result.at, title) for result, title in zip(results, titles, strict=True)]


def _section(at: At, title: str) -> Section:
    blocks: list[Block] = [Paragraph(_told(at)), _by_role(at)]
    if at.data["events"]:
        blocks.append(_bases(at))
    blocks += [Paragraph([note]) for note in at.data.get("notes", [])]
    blocks.append(_map(at))
    for part, what in (("weights", "Loss while weights are learnt"), ("factors", "Loss of the factors")):
        if at.data[part] is not None:
            blocks.append(_losses(at, part, what))
    return Section(title, blocks)


def _told(at: At) -> list[Any]:
    dense = sum(matrix["rank"] is None for matrix in at.data["matrices"])
    sentence = [
        at["keep_selected"].figure(percent(at.data["keep_selected"])),
        " of the parameters of ",
        f"{len(at.data['matrices']):,} matrices are left, chosen on ",
        at.cell("rows"),
        " rows.",
    ]
    return [*sentence, f" {dense:,} matrices are stored dense."] if dense else sentence


def _roles(data: dict[str, Any]) -> dict[str, list[int]]:
    """Role -> places of its matrices."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, matrix in enumerate(data["matrices"]):
        found[matrix["role"]].append(place)
    return dict(sorted(found.items(), key=lambda item: role_key(item[0])))


def _by_role(at: At) -> Table:
    rows: list[list[Cell]] = []
    for role, places in _roles(at.data).items():
        matrices = [at.data["matrices"][place] for place in places]
        ranks = [matrix["rank"] for matrix in matrices if matrix["rank"] is not None]
        sizes = [matrix["out_features"] * matrix["in_features"] for matrix in matrices]
        kept = sum(size * matrix["kept"] for size, matrix in zip(sizes, matrices, strict=True)) / sum(sizes)
        full = min(matrices[0]["out_features"], matrices[0]["in_features"])
        shown = f"{min(ranks)} to {max(ranks)}" if ranks else "dense"
        rows.append([role, str(len(places)), str(full), shown, percent(kept)])
    columns = ("role", ">matrices", ">bases before", ">rank after", ">kept")
    return Table("What is left, by role", columns, rows, MEASURED)


def _bases(at: At) -> Chart:
    """Mean number of bases of each role after every event."""
    lines = []
    for role, places in _roles(at.data).items():
        matrices = at.data["matrices"]
        first = sum(min(matrices[i]["out_features"], matrices[i]["in_features"]) for i in places)
        counts = [(0, first)] + [
            (event["step"], sum(event["bases"][i] for i in places)) for event in at.data["events"]
        ]
        points = [(float(step), count / len(places)) for step, count in counts]
        tip = f"{role}: {points[0][1]:.0f} bases at first, {points[-1][1]:.1f} after the last event"
        lines.append(Curve(role, points, tip))
    drawing = curves(lines, "steps", "bases of a matrix, mean of the role")
    return Chart(
        "Bases by role",
        drawing,
        "Mean number of bases of a matrix, new ones not counted, after each event.",
        [line.tip for line in lines],
    )


def _map(at: At) -> Chart:
    """Share kept over layers and roles; darker is less."""
    roles, matrices = list(_roles(at.data)), at.data["matrices"]
    layers = sorted({matrix["layer"] for matrix in matrices})
    tiles = {}
    for matrix in matrices:
        place = layers.index(matrix["layer"]), roles.index(matrix["role"])
        share = 100 * (matrix["kept"] - 1)
        tiles[place] = heatmap.Tile(*place, share, f"{matrix['name']}: {percent(matrix['kept'])} kept")
    axes = heatmap.Axis("layer", list(map(str, layers))), heatmap.Axis("role", roles)
    title = "Share of each matrix that went"
    drawing = heatmap.heatmap(title, *axes, list(tiles.values()), 100.0, "parameters against dense, in %")
    caption = "Parameters of each matrix against what it had; where a role has several in a layer, the last."
    return Chart(title, drawing, caption, [tile.tip for tile in tiles.values()])


def _losses(at: At, part: str, title: str) -> Chart:
    data = at.data[part]
    steps = _smoothed(data["losses"])
    lines = [
        Curve(
            "learnt",
            [(float(i), loss) for i, loss in enumerate(steps, 1)],
            f"learnt: {steps[-1]:.4f} at the end",
        )
    ]
    if data["validation"]:
        held = [(float(step), loss) for step, loss in data["validation"]]
        best = min(loss for _, loss in held)
        lines.append(Curve("held out", held, f"rows that are not learnt: {best:.4f} at best"))
    marks = [float(event["step"]) for event in at.data["events"]] if part == "weights" else []
    drawing = curves(lines, "steps", "loss, nats a token", marks)
    caption = "Mean loss of the tokens of answers, smoothed over some ten steps"
    more = "; thin lines are events." if marks else "."
    return Chart(title, drawing, caption + more, [line.tip for line in lines])


def _smoothed(losses: Sequence[float], share: float = 0.1) -> list[float]:
    """A running average, so that the way can be seen through the noise of batches."""
    return list(accumulate(losses, lambda mean, loss: (1 - share) * mean + share * loss))


VIEWS: tuple[View, ...] = (View("basel", Basel, _draw, file=RESULT, key="basel"),)
