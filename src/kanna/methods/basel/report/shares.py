"""What is left: in a sentence, by role, and over layers and roles."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kanna.models.matrix import role_key
from kanna.reporting import heatmap
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Paragraph, Table
from kanna.reporting.wording import percent


def shares(at: At) -> list[Block]:
    """Sentences, a table and a map."""
    return [*(Paragraph(sentence) for sentence in _sentences(at)), _by_role(at), _map(at)]


def by_role(data: dict[str, Any]) -> dict[str, list[int]]:
    """Role -> places of its matrices."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, matrix in enumerate(data["matrices"]):
        found[matrix["role"]].append(place)
    return dict(sorted(found.items(), key=lambda item: role_key(item[0])))


def full_rank(matrix: dict[str, Any]) -> int:
    return min(matrix["out_features"], matrix["in_features"])


def _sentences(at: At) -> list[list[Any]]:
    data = at.data
    dense = [matrix["name"] for matrix in data["matrices"] if matrix["rank"] is None]
    first = [
        at["keep_selected"].figure(percent(data["keep_selected"])),
        f" of the parameters of {len(data['matrices']):,} matrices are left, chosen on ",
        at.cell("rows"),
        " rows.",
    ]
    if dense:
        first.append(f" Stored dense, since factors would not be smaller: {', '.join(dense)}.")
    sentences: list[list[Any]] = [first]
    if data.get("keep_model") is not None and data.get("least_keep_model") is not None:
        sentences.append(
            [
                "Of all parameters of the model ",
                at["keep_model"].figure(percent(data["keep_model"])),
                " are left; with nothing left of these matrices it would be ",
                at["least_keep_model"].figure(percent(data["least_keep_model"])),
                ".",
            ]
        )
    if (text := at.get("text")) is not None:
        sentences.append(
            [
                "On ",
                text.cell("tokens"),
                " tokens of text that was not learnt the loss was ",
                text.cell("before", ".4f"),
                " before and is ",
                text.cell("after", ".4f"),
                " nats a token.",
            ]
        )
    return sentences


def _kept(matrices: Sequence[dict[str, Any]]) -> float:
    """Share of their parameters together."""
    sizes = [matrix["out_features"] * matrix["in_features"] for matrix in matrices]
    return sum(size * matrix["kept"] for size, matrix in zip(sizes, matrices, strict=True)) / sum(sizes)


def _by_role(at: At) -> Table:
    rows: list[list[Cell]] = []
    for role, places in by_role(at.data).items():
        matrices = [at.data["matrices"][place] for place in places]
        ranks = [matrix["rank"] for matrix in matrices if matrix["rank"] is not None]
        dense = len(matrices) - len(ranks)
        full = _span([full_rank(matrix) for matrix in matrices])
        rows.append([role, str(len(places)), full, _span(ranks), str(dense), percent(_kept(matrices))])
    columns = ("role", ">matrices", ">bases before", ">rank after", ">stay dense", ">kept")
    return Table("What is left, by role", columns, rows, MEASURED)


def _span(numbers: Sequence[int]) -> str:
    if not numbers:
        return "-"
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _map(at: At) -> Chart:
    """Share kept over layers and roles; those of one role in a layer together."""
    matrices = at.data["matrices"]
    roles = list(by_role(at.data))
    layers = sorted({matrix["layer"] for matrix in matrices})
    places: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for matrix in matrices:
        places[layers.index(matrix["layer"]), roles.index(matrix["role"])].append(matrix)
    tiles = [heatmap.Tile(*place, 100 * _kept(here), _tip(here)) for place, here in sorted(places.items())]
    axes = heatmap.Axis("layer", list(map(str, layers))), heatmap.Axis("role", roles)
    title = "Share of each matrix that is kept"
    drawing = heatmap.heatmap(title, *axes, tiles, 100.0, "parameters kept, in %", signed=False)
    caption = "Parameters of each matrix against what it had; several of one role in a layer count together."
    return Chart(title, drawing, caption, [], _as_table(title, tiles, layers, roles))


def _tip(matrices: Sequence[dict[str, Any]]) -> str:
    return "; ".join(
        f"{matrix['name']}: {percent(matrix['kept'])} kept, "
        + ("dense" if matrix["rank"] is None else f"rank {matrix['rank']:,} of {full_rank(matrix):,}")
        for matrix in matrices
    )


def _as_table(
    title: str, tiles: Sequence[heatmap.Tile], layers: Sequence[int], roles: Sequence[str]
) -> Table:
    shown = {(tile.row, tile.column): f"{tile.change:.1f} %" for tile in tiles}
    rows = [
        [str(layer), *(shown.get((row, column), "") for column in range(len(roles)))]
        for row, layer in enumerate(layers)
    ]
    return Table(title, ["layer", *(f">{role}" for role in roles)], rows, MEASURED)
