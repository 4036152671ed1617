"""How far two sets of scales lie apart, as a map over layers and roles, on a page of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from kanna.reporting import heatmap
from kanna.reporting.blocks import COMPUTED, Chart, Page, Section, Table
from kanna.reporting.wording import percent

_LEAST = 1e-9


def page(base: str, one: str, other: str, moved: Sequence[Mapping[str, Any]]) -> Page:
    """A page with the map, and the numbers in words.

    Args:
        moved: `path`, `mean` and `most` of each matrix.
    """
    title = f"Scales of {base}: {one} against {other}"
    return Page(title, [], [Section(title, [_map(moved)])], {"moved": list(moved)})


def _map(moved: Sequence[Mapping[str, Any]]) -> Chart:
    places = {row["path"]: placed(row["path"]) for row in moved}
    layers = sorted({layer for layer, _ in places.values()})
    roles = sorted({role for _, role in places.values()})
    tiles = []
    for row in sorted(moved, key=lambda row: places[row["path"]]):
        layer, role = places[row["path"]]
        tip = f"{row['path']}: {percent(row['mean'])}, at most {percent(row['most'])}"
        tiles.append(heatmap.Tile(layers.index(layer), roles.index(role), 100 * row["mean"], tip))
    deepest = max(_LEAST, *(tile.change or 0.0 for tile in tiles))
    axes = heatmap.Axis("layer", list(map(str, layers))), heatmap.Axis("role", roles)
    title = "By how much scales differ"
    drawing = heatmap.heatmap(title, *axes, tiles, deepest, "of what they were, in %", signed=False)
    caption = "Root of the mean square over a matrix, relative to the scales as they were quantised."
    rows = [(row["path"], percent(row["mean"]), percent(row["most"])) for row in moved]
    table = Table(title, ("matrix", ">scales differ by", ">at most"), rows, COMPUTED)
    return Chart(title, drawing, caption, [], table)


def placed(path: str) -> tuple[int, str]:
    """(layer, role) of the path of a module: its first number, and what comes after that."""
    parts = path.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if first is None:
        return 0, path
    return int(parts[first]), ".".join(parts[first + 1 :]) or path
