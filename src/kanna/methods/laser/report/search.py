"""The section of one search for an edit: a map over layers and ranks, the choice, and what it came to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kanna.methods.laser.report import tested as laser_tests
from kanna.methods.laser.report.tested import AS_IT_IS, filled, loss, perplexity, value
from kanna.models.matrix import role_key
from kanna.reporting import heatmap
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Figure, Paragraph, Section, Table
from kanna.reporting.wording import change, is_share, shown

# Where a tile lies: layer and rho.
Place = tuple[int, str]


def search(at: At, title: str) -> Section:
    """Maps, the Pareto set, the choice, and the test."""
    blocks: list[Block] = [Paragraph(_tried(at)), Paragraph(_rule(at)), Paragraph(_choice(at))]
    blocks += [*_maps(at), _pareto(at)]
    test = at.get("test")
    if test is not None:
        blocks += laser_tests.tested(test, laser_tests.together(test.data["edits"]))
    return Section(title, blocks)


def whole(data: Mapping[str, Any]) -> list[int]:
    """Places of the trials that all validation rows were spent on."""
    return [i for i, one in enumerate(data["trials"]) if one["rows"] == data["base"]["rows"]]


def best(data: Mapping[str, Any]) -> int | None:
    """Place of the trial that was tested: the chosen one, else the most accurate, ties by log loss."""
    trials, chosen = data["trials"], data["chosen"]
    if not data["base_wins"]:
        wanted = (chosen["edit"], chosen["blocks"])
        return next((i for i, one in enumerate(trials) if (one["edit"], one["blocks"]) == wanted), None)
    return min(whole(data), key=lambda i: (-trials[i]["accuracy"], trials[i]["log_loss"]), default=None)


def named(trial: Mapping[str, Any]) -> str:
    """An edit with its row blocks, where there are several."""
    if not trial["edit"]:
        return AS_IT_IS
    return trial["edit"] if trial["blocks"] == 1 else f"{trial['edit']} in {trial['blocks']} row blocks"


def _tried(at: At) -> list[str | Figure]:
    data = at.data
    rows = at["task"]["validation_rows"].figure(f"{data['task']['validation_rows']:,}")
    said: list[str | Figure] = [
        f"{len(data['trials']):,} of ",
        at["candidates"].figure(f"{data['candidates']:,}"),
        " candidates were tried, ",
        f"{len(whole(data)):,} of them on all ",
        rows,
        " validation rows: ",
        at["matrices"].figure(f"{data['matrices']:,}"),
        " matrices of ",
        at["layers"].figure(str(data["layers"])),
        " layers.",
    ]
    fast = at["settings"]["budget"].get("fast")
    if fast is not None:
        said += [
            " Which ones was settled by the gradient of singular values on ",
            fast.figure(str(fast.data)),
            " examples, then by successive halving on growing parts of the validation rows.",
        ]
    elif data["left_out"]:
        said += [" The budget ended before ", at["left_out"].figure(f"{data['left_out']:,}"), " others."]
    return said


def _rule(at: At) -> list[str | Figure]:
    settings, metric = at["settings"], at.data["task"]["metric"]
    if settings.data["rule"] == "published":
        return [
            f"Rule (published): the highest validation score ({metric}), ties by log loss. The model as it "
            "is takes no part."
        ]
    said: list[str | Figure] = [
        f"Rule (constrained): the highest validation score ({metric}) above that of the model as it is, "
        "ties by log loss"
    ]
    if at.data["base"]["consistency"] is not None:
        said.append(", with a consistency over paraphrases that is not lower")
    rise = settings.get("max_ppl_rise")
    if settings.data["text"] is not None and rise is not None:
        allowed = rise.figure(f"{100 * rise.data:.4g} %")
        said += [f", and a perplexity on {settings.data['text']} that rises by at most ", allowed]
    return [*said, "."]


def _choice(at: At) -> list[str | Figure]:
    """What was chosen on validation rows, or why nothing was."""
    data, metric = at.data, at.data["task"]["metric"]
    if data["base_wins"]:
        return ["Chosen: no edit. ", *_beaten(at, metric)]
    chosen = at["chosen"]
    rank = chosen["rank"].figure(str(chosen.data["rank"]))
    said: list[str | Figure] = [f"Chosen: {named(chosen.data)}, which leaves rank ", rank]
    said += [f" of {chosen.data['matrix']}. On validation rows "]
    return [*said, *_from_to(at["base"], chosen, metric), "."]


def _beaten(at: At, metric: str) -> list[str | Figure]:
    place = best(at.data)
    if place is None:
        return ["No candidate was tried on all validation rows."]
    first = at["trials"][place]
    if first.data["accuracy"] <= at.data["base"]["accuracy"]:
        return [f"None has a higher validation score ({metric}) than the model as it is."]
    return [
        f"Some have a higher validation score ({metric}), but break a limit of the rule; the first of them, "
        f"{named(first.data)}: ",
        *_from_to(at["base"], first, metric),
        ".",
    ]


def _from_to(base: At, new: At, metric: str) -> list[str | Figure]:
    pairs = [
        (f"{metric} ", value(base, "accuracy", metric), value(new, "accuracy", metric)),
        ("log loss ", loss(base), loss(new)),
        ("consistency ", value(base, "consistency"), value(new, "consistency")),
        ("perplexity ", perplexity(base), perplexity(new)),
    ]
    said: list[str | Figure] = []
    for name, before, after in pairs:
        if isinstance(before, Figure) and isinstance(after, Figure):
            said += [", " if said else "", name, before, " → ", after]
    return said


def _pareto(at: At) -> Table:
    metric = at.data["task"]["metric"]
    columns = ("edit", ">rank", f">{metric}", ">change", ">log loss", ">consistency", ">perplexity")
    rows = [_row(one, at["base"], metric) for one in at["pareto"].items()]
    title = "Pareto set on validation rows: beaten by no other in everything at once"
    return Table(title, *filled(columns, rows), MEASURED)


def _row(at: At, base: At, metric: str) -> list[Cell]:
    rank: Cell = at["rank"].figure(str(at.data["rank"])) if at.data["edit"] else ""
    moved: Cell = _moved(at, base, metric) if at.data["edit"] else ""
    scores = [value(at, "accuracy", metric), moved, loss(at), value(at, "consistency"), perplexity(at)]
    return [named(at.data), rank, *scores]


def _moved(at: At, base: At, metric: str) -> Figure:
    step = at.data["accuracy"] - base.data["accuracy"]
    return at["accuracy"].minus(base["accuracy"], change(metric, step))


def _maps(at: At) -> list[Block]:
    """One per role, and per number of row blocks; all on one scale."""
    data = at.data
    if not data["trials"]:
        return []
    full = set(whole(data))
    steps = [abs(data["trials"][i]["accuracy"] - data["base"]["accuracy"]) for i in full]
    finite = [step for step in steps if math.isfinite(step) and step > 0]
    most = max(finite, default=0.01) * _factor(data["task"]["metric"])
    kinds = {(trial["role"], trial["blocks"]) for trial in data["trials"]}
    ordered = sorted(kinds, key=lambda kind: (role_key(kind[0]), kind[1]))
    return [_map(at, role, blocks, most, full) for role, blocks in ordered]


def _factor(metric: str) -> float:
    """Shares are shown in points."""
    return 100.0 if is_share(metric) else 1.0


def _map(at: At, role: str, blocks: int, most: float, full: set[int]) -> Chart:
    data, metric = at.data, at.data["task"]["metric"]
    layers, rhos = _layers(data), list(dict.fromkeys(data["settings"]["rhos"]))
    placed = _placed(data, role, blocks, full)
    rhos += [rho for rho in dict.fromkeys(rho for _, rho in placed) if rho not in rhos]
    special = best(data)
    tiles = [
        heatmap.Tile(
            layers.index(layer),
            rhos.index(rho),
            _change(data, found[0], full),
            _tip(data, found),
            special in found,
        )
        for (layer, rho), found in placed.items()
    ]
    unit = f"{metric} against the model as it is{', in points' if is_share(metric) else ''}"
    axes = (
        heatmap.Axis("layer", [str(one) for one in layers]),
        heatmap.Axis("rho, share of the rank kept", rhos),
    )
    title = (
        f"Change of the validation score ({metric}): {role}{'' if blocks == 1 else f', {blocks} row blocks'}"
    )
    drawing = heatmap.heatmap(title, *axes, tiles, most, unit)
    table = _twin(at, title, layers, rhos, placed, full)
    return Chart(title, drawing, _caption(data, placed, full, special), [one.tip for one in tiles], table)


def _layers(data: Mapping[str, Any]) -> list[int]:
    """All, or where only some were asked for those from the first to the last that was tried."""
    tried = [one["layer"] for one in data["trials"]]
    if data["settings"]["layers"] in ("all", "*") and min(tried) >= 0 and max(tried) < data["layers"]:
        return list(range(data["layers"]))
    return list(range(min(tried), max(tried) + 1))


def _placed(data: Mapping[str, Any], role: str, blocks: int, full: set[int]) -> dict[Place, list[int]]:
    """Layer and rho -> places of the trials there (several where it has experts), the best first."""
    found: dict[Place, list[int]] = {}
    for index, one in enumerate(data["trials"]):
        if (one["role"], one["blocks"]) == (role, blocks):
            found.setdefault((one["layer"], one["rho"]), []).append(index)

    def rank(index: int) -> tuple[bool, float, float]:
        one = data["trials"][index]
        return index not in full, -one["accuracy"], one["log_loss"]

    return {place: sorted(indices, key=rank) for place, indices in found.items()}


def _change(data: Mapping[str, Any], index: int, full: set[int]) -> float | None:
    """Scores on fewer rows are not held against the base's on all of them."""
    if index not in full:
        return None
    step = data["trials"][index]["accuracy"] - data["base"]["accuracy"]
    return float(step) * _factor(data["task"]["metric"])


def _tip(data: Mapping[str, Any], found: Sequence[int]) -> str:
    one, base, metric = data["trials"][found[0]], data["base"], data["task"]["metric"]
    parts = [f"rank {one['rank']}", f"{metric} {shown(metric, one['accuracy'])}"]
    if one["rows"] == base["rows"]:
        parts[-1] += f" ({change(metric, one['accuracy'] - base['accuracy'])})"
    parts.append(f"log loss {one['log_loss']:.4f}")
    if one["consistency"] is not None:
        parts.append(f"consistency {shown('consistency', one['consistency'])}")
    if one["perplexity"] is not None:
        parts.append(f"perplexity {one['perplexity']:.2f}")
    rows = f"{one['rows']:,} rows"
    parts.append(rows if one["rows"] == base["rows"] else f"{rows} only, dropped before the others")
    several = f" (best of {len(found)} matrices here)" if len(found) > 1 else ""
    return f"{named(one)}{several}: {', '.join(parts)}"


def _caption(
    data: Mapping[str, Any], placed: Mapping[Place, Sequence[int]], full: set[int], special: int | None
) -> str:
    """How to read this map; signs that it does not have are not explained."""
    said = ["Blue is better, orange worse; the deeper the more, by the square root."]
    if any(found[0] not in full for found in placed.values()):
        said.append("A ring, or rows in brackets: dropped after fewer rows, so not held against the base.")
    if len(placed) < len(_layers(data)) * len(data["settings"]["rhos"]):
        said.append("Empty: not tried.")
    if any(special in found for found in placed.values()):
        said.append(f"Framed: {'tested, not chosen' if data['base_wins'] else 'chosen'}.")
    return " ".join(said)


def _twin(
    at: At,
    title: str,
    layers: Sequence[int],
    rhos: Sequence[str],
    placed: Mapping[Place, Sequence[int]],
    full: set[int],
) -> Table:
    """The map as a table of layers without those that nothing was tried in."""
    metric = at.data["task"]["metric"]

    def cell(layer: int, rho: str) -> Cell:
        if (layer, rho) not in placed:
            return ""
        one = at["trials"][placed[layer, rho][0]]
        if placed[layer, rho][0] in full:
            return _moved(one, at["base"], metric)
        return ("(", one["rows"].figure(f"{one.data['rows']:,}"), " rows)")

    used = {layer for layer, _ in placed}
    rows = [[str(layer), *(cell(layer, rho) for rho in rhos)] for layer in layers if layer in used]
    return Table(title, ("layer", *(f">rho {rho}" for rho in rhos)), rows, MEASURED)
