"""What a report shows of Hi-Merging: grids, contributions by block and task, conflicts, steps, the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kanna.methods.merge.tuning.report import judged_blocks, tasks_table
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Paragraph, Table
from kanna.reporting.curves import Curve, curves
from kanna.reporting.heatmap import Axis, Tile, heatmap
from kanna.reporting.wording import filled, percent

_GRID = "The score of an expert by itself, of whose difference the share p stays, multiplied by s."
_GIVEN = (
    "What a block gives each task, of what the task's expert gains: in points of 100. A deletion is what is "
    "lost where the block becomes the base's, an addition what is gained where it alone is put into the base."
)
_FIGHT = (
    "By how much the merge gives a task less in a block than its expert does, in points of 100: gamma. Blue "
    "is a conflict."
)

_SIGNS = (
    "The share of an expert's energy in a block that has the sign against the sum's, less what coins would "
    "give, in points of 100: gamma. Blue is a conflict."
)
_NOT_THE_PAPER = (
    "Blocks were ranked by sign conflicts of the weights alone. This is not the paper's Hi-Merging: no task "
    "was asked, and nothing says that a step made the merge better."
)

# Of blocks that are no layers, in the narrow columns of a map.
_SHORT = {"embeddings": "E", "norm and head": "H"}


def hi_blocks(at: At | None) -> list[Block]:
    """Everything that is told of it; nothing where a merge was made otherwise."""
    if at is None:
        return []
    if at.data["before"] is None:
        return _by_signs(at)
    rounds = at["rounds"].items()
    found: list[Block] = [tasks_table(at), *_dropped(at), _experts(at), *_grids(at)]
    if rounds:
        found += [*_contributions(at, rounds[0]), *_conflicts(at, rounds[0]), _steps(at), *_path(at)]
    return [*found, Paragraph(_said(at)), *judged_blocks(at.get("test"))]


def _by_signs(at: At) -> list[Block]:
    """Of a merge that asked no task."""
    (only,) = at["rounds"].items()
    names = [one["name"] for one in at.data["experts"]]
    rows: list[list[Cell]] = [
        [step.data["block"], step.data["kind"], step.data["action"]] for step in only["steps"].items()
    ]
    steps = Table(
        "Steps, none of which was tried on a task", ("block", "conflict", "<action"), rows, MEASURED
    )
    conflicts: list[Block] = [
        _map(names, only, "Conflicts of signs", _SIGNS, lambda block, expert: block["gamma"][expert]),
        conflict_table(names, only),
    ]
    return [Paragraph([_NOT_THE_PAPER]), _experts(at), *conflicts, steps, *judged_blocks(at.get("test"))]


def analysis_blocks(at: At) -> list[Block]:
    """Contributions and conflicts of an analysis; nothing without tasks."""
    if not at.data["tasks"]:
        return []
    return [tasks_table(at), *_contributions(at, at), *_conflicts(at, at)]


def _dropped(at: At) -> list[Block]:
    names = at.data["dropped"]
    return [Paragraph([f"Left out, since nothing is gained: {', '.join(names)}."])] if names else []


def _experts(at: At) -> Table:
    rows: list[list[Cell]] = []
    for one in at["experts"].items():
        best = max((cell["score"] for cell in one.data["grid"]), default=None)
        tried = str(len(one.data["grid"])) if one.data["grid"] else "none"
        score = "" if best is None else f"{best:.4f}"
        rows.append([one.data["name"], one.cell("kept", "g"), one.cell("scale", "g"), tried, score])
    columns = ("expert", ">kept share p", ">scale s", ">pairs tried", ">score of its task")
    return Table("Experts by themselves", filled(columns, rows)[0], filled(columns, rows)[1], MEASURED)


def _grids(at: At) -> list[Block]:
    return [_grid(one) for one in at["experts"].items() if len(one.data["grid"]) > 1]


def _grid(at: At) -> Chart:
    cells: Sequence[Mapping[str, float]] = at.data["grid"]
    kept, scales = (sorted({cell[key] for cell in cells}) for key in ("kept", "scale"))
    chosen = at.data["kept"], at.data["scale"]
    tiles = [
        Tile(
            kept.index(cell["kept"]),
            scales.index(cell["scale"]),
            max(0.0, 100 * cell["score"]),
            f"p {cell['kept']:g}, s {cell['scale']:g}: {cell['score']:.4f}",
            framed=(cell["kept"], cell["scale"]) == chosen,
        )
        for cell in cells
    ]
    name = f"Scores of {at.data['name']} by p and s"
    most = max(1e-9, *(tile.change or 0.0 for tile in tiles))
    down, across = (
        Axis(title, [f"{value:g}" for value in values]) for title, values in (("p", kept), ("s", scales))
    )
    drawing = heatmap(name, down, across, tiles, most, "score, %", signed=False)
    rows = [[f"{cell['kept']:g}", f"{cell['scale']:g}", f"{cell['score']:.4f}"] for cell in cells]
    table = Table(name, (">p", ">s", ">score"), rows)
    return Chart(name, drawing, _GRID, [tile.tip for tile in tiles], table)


def _contributions(at: At, first: At) -> list[Block]:
    """Of the experts, block by task."""
    gains = [task["gain"] for task in at.data["tasks"]]
    maps = []
    for key, title in (("alpha", "deletion"), ("beta", "addition")):
        maps.append(
            _map(
                _names(at),
                first,
                f"Contributions in the experts, by {title}",
                _GIVEN,
                lambda block, task, key=key: block["own"][task][key] / gains[task],  # type: ignore[misc]
            )
        )
    return list(maps)


def _conflicts(at: At, first: At) -> list[Block]:
    return [
        _map(_names(at), first, "Conflicts", _FIGHT, lambda block, task: block["gamma"][task]),
        conflict_table(_names(at), first),
    ]


def _names(at: At) -> list[str]:
    return [one["expert"] for one in at.data["tasks"]]


def _map(
    experts: Sequence[str],
    first: At,
    title: str,
    caption: str,
    value: Callable[[Mapping[str, Any], int], float],
) -> Chart:
    blocks = first.data["blocks"]
    tiles = [
        Tile(row, column, 100 * value(block, row), _tip(expert, block["block"], value(block, row)))
        for row, expert in enumerate(experts)
        for column, block in enumerate(blocks)
    ]
    most = max(1.0, *(abs(tile.change or 0.0) for tile in tiles))
    numbers = [f"{row + 1}" for row in range(len(experts))]
    names = [_short(one["block"]) for one in blocks]
    told = ", ".join(f"{number}: {name}" for number, name in zip(numbers, experts, strict=True))
    drawing = heatmap(title, Axis("expert", numbers), Axis("block", names), tiles, most, "points")
    return Chart(
        title, drawing, f"{caption} Experts, or their tasks, are {told}.", [tile.tip for tile in tiles]
    )


def _short(block: str) -> str:
    """In the narrow columns of a map: E0 of an encoder, D0 of a decoder."""
    stack, blank, number = block.partition(" ")
    alone = _SHORT.get(block, block)
    return f"{stack[0].upper()}{number}" if blank and number[0].isdigit() else alone


def _tip(expert: str, block: str, value: float) -> str:
    return f"{expert}, {block}: {100 * value:+.1f}"


def conflict_table(experts: Sequence[str], first: At) -> Table:
    """Blocks in the order in which they are worked on."""
    rows: list[list[Cell]] = []
    for one in sorted(first["blocks"].items(), key=lambda block: -float(block.data["total"])):
        gammas = [
            f"{gamma:+.4f} ± {error:.4f}"
            for gamma, error in zip(one.data["gamma"], one.data["errors"], strict=True)
        ]
        total = f"{one.data['total']:+.4f} ± {one.data['total_error']:.4f}"
        rows.append([one.data["block"], *gammas, total, one.data["kind"]])
    columns = ("block", *(f">gamma of {name}" for name in experts), ">Gamma", "conflict")
    return Table("Conflicts by block, with standard errors", columns, rows, MEASURED)


def _steps(at: At) -> Table:
    rows: list[list[Cell]] = []
    for number, one in enumerate(at["rounds"].items(), 1):
        for step in one["steps"].items():
            said = "yes" if step.data["accepted"] else "no"
            scores = [step.cell(key, percent) for key in ("before", "after")]
            told = [str(number), *(step.data[key] for key in ("block", "kind", "action"))]
            rows.append([*told, *scores, said])
    columns = (">round", "block", "conflict", "<action", ">before", ">after", "accepted")
    return Table("Steps, by the mean normalised score on the calibration rows", columns, rows, MEASURED)


def _path(at: At) -> list[Block]:
    """Scores over the accepted steps."""
    scores = [at.data["before"]]
    for one in at.data["rounds"]:
        scores += [step["after"] for step in one["steps"] if step["accepted"]]
    if len(scores) < 2:
        return []
    points = [(float(number), 100 * float(score)) for number, score in enumerate(scores)]
    tip = f"from {points[0][1]:.1f} to {points[-1][1]:.1f} in {len(points) - 1} accepted steps"
    drawing = curves([Curve("merge", points, tip)], "accepted step", "mean normalised score, %")
    return [Chart("The path of accepted steps", drawing, "On the calibration rows.", [tip])]


def _said(at: At) -> list[Any]:
    before, after = (at[key].figure(percent(at.data[key])) for key in ("before", "after"))
    count = at["evaluations"].figure(f"{at.data['evaluations']:,}")
    told = ["Mean normalised score on the calibration rows: ", before, " of the pruned and scaled experts "]
    return [*told, "together, ", after, " in the end, after ", count, " evaluations."]
