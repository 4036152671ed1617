"""The sections of what was found: of one edit the map over layers and ranks, of several the steps tried.

`trials` is the CSV of all that searches tried.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kanna.methods.laser.report import tested as laser_tests
from kanna.methods.laser.report.tested import AS_IT_IS, loss, perplexity, value
from kanna.models.matrix import role_key
from kanna.reporting import heatmap
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Figure, Paragraph, Section, Table
from kanna.reporting.wording import filled, moved
from kanna.tasks.metrics.shown import change, is_share, shown

# Where a tile lies: layer and rho.
Place = tuple[int, str]
# Columns of the CSV.
_TRIAL = ("edit", "role", "layer", "matrix", "rho", "rank", "blocks", "rows")
_SCORES = ("log_loss", "consistency", "perplexity")


def search(at: At, title: str) -> Section:
    """Maps, the Pareto set, the choice, and the test."""
    blocks: list[Block] = [Paragraph(_tried(at)), Paragraph(_rule(at)), Paragraph(_choice(at))]
    blocks += [*_maps(at), _pareto(at)]
    test = at.get("test")
    if test is not None:
        blocks += laser_tests.tested(test)
    return Section(title, blocks)


def composition(at: At, title: str) -> Section:
    """The stages and the test."""
    blocks: list[Block] = [
        Paragraph(
            [
                "Edits of a search, the last layers first. Each is put on top of those accepted before, and "
                "stays only if the validation score gets better and no limit is broken."
            ]
        ),
        _stages(at),
        *laser_tests.plain_text(at["perplexity"]),
    ]
    test = at.get("test")
    if test is not None:
        blocks += laser_tests.tested(test)
    return Section(title, blocks)


def _stages(at: At) -> Table:
    metric = at.data["task"]["metric"]
    columns = (">stage", "edit", "", f">{metric}", ">change", ">log loss", ">consistency")
    rows = [_stage(at["base"], at["base"], metric)]
    rows += [_stage(stage, at["base"], metric) for stage in at["stages"].items()]
    rows_of = at.data["task"]["validation_rows"]
    return Table(f"Stages, on {rows_of:,} validation rows", *filled(columns, rows), MEASURED)


def _stage(at: At, base: At, metric: str) -> list[Cell]:
    scores: list[Cell] = [value(at, "accuracy", metric), "", loss(at), value(at, "consistency")]
    if at.path == base.path:
        return ["0", AS_IT_IS, "", *scores]
    scores[1] = moved(at["accuracy"], base["accuracy"], metric)
    number, status = (at.cell("number"), "accepted") if at.data["accepted"] else ("", "rejected")
    return [number, at.data["edit"], status, *scores]


def whole(data: Mapping[str, Any]) -> list[int]:
    """Places of the trials that all validation rows were spent on."""
    return [i for i, trial in enumerate(data["trials"]) if trial["rows"] == data["base"]["rows"]]


def best(data: Mapping[str, Any]) -> int | None:
    """Place of the trial that was tested: the chosen one, else the most accurate, ties by log loss."""
    trials, chosen = data["trials"], data["chosen"]
    if not data["base_wins"]:
        wanted = (chosen["edit"], chosen["blocks"])
        return next((i for i, trial in enumerate(trials) if (trial["edit"], trial["blocks"]) == wanted), None)
    return min(whole(data), key=lambda i: (-trials[i]["accuracy"], trials[i]["log_loss"]), default=None)


def named(trial: Mapping[str, Any]) -> str:
    """An edit with its row blocks, where there are several."""
    if not trial["edit"]:
        return AS_IT_IS
    return trial["edit"] if trial["blocks"] == 1 else f"{trial['edit']} in {trial['blocks']} row blocks"


def _tried(at: At) -> list[str | Figure]:
    data = at.data
    sentences = [
        f"{len(data['trials']):,} of ",
        at.cell("candidates"),
        f" candidates were tried, {len(whole(data)):,} of them on all ",
        at["task"].cell("validation_rows"),
        " validation rows: ",
        at.cell("matrices"),
        " matrices of ",
        at.cell("layers", "d"),
        " layers.",
    ]
    if fast := at["settings"]["budget"].cell("fast", "d"):
        sentences += [
            " Which ones was settled by the gradient of singular values on ",
            fast,
            " examples, then by successive halving on growing parts of the validation rows.",
        ]
    elif data["left_out"]:
        sentences += [" The budget ended before ", at.cell("left_out"), " others."]
    return sentences


def _rule(at: At) -> list[str | Figure]:
    settings, metric = at["settings"], at.data["task"]["metric"]
    if settings.data["rule"] == "published":
        return [
            f"Rule (published): the highest validation score ({metric}), ties by log loss. The model as it "
            "is takes no part."
        ]
    sentence: list[str | Figure] = [
        f"Rule (constrained): the highest validation score ({metric}) above that of the model as it is, "
        "ties by log loss"
    ]
    if at.data["base"]["consistency"] is not None:
        sentence.append(", with a consistency over paraphrases that is not lower")
    rise = settings.cell("max_ppl_rise", lambda share: f"{100 * share:.4g} %")
    if settings.data["text"] is not None and rise:
        sentence += [f", and a perplexity on {settings.data['text']} that rises by at most ", rise]
    return [*sentence, "."]


def _choice(at: At) -> list[str | Figure]:
    """What was chosen on validation rows, or why nothing was."""
    data, metric = at.data, at.data["task"]["metric"]
    if data["base_wins"]:
        return ["Chosen: no edit. ", *_beaten(at, metric)]
    chosen = at["chosen"]
    which = [f"Chosen: {named(chosen.data)}, which leaves rank ", chosen.cell("rank", "d")]
    where = f" of {chosen.data['matrix']}. On validation rows "
    return [*which, where, *_from_to(at["base"], chosen, metric), "."]


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
    sentence: list[str | Figure] = []
    for name, before, after in pairs:
        if before and after:
            sentence += [", " if sentence else "", name, before, " → ", after]
    return sentence


def _pareto(at: At) -> Table:
    metric = at.data["task"]["metric"]
    columns = ("edit", ">rank", f">{metric}", ">change", ">log loss", ">consistency", ">perplexity")
    rows = [_row(trial, at["base"], metric) for trial in at["pareto"].items()]
    title = "Pareto set on validation rows: beaten by no other in everything at once"
    return Table(title, *filled(columns, rows), MEASURED)


def _row(at: At, base: At, metric: str) -> list[Cell]:
    edited: list[Cell] = ["", ""]
    if at.data["edit"]:
        edited = [at.cell("rank", "d"), moved(at["accuracy"], base["accuracy"], metric)]
    rank, gain = edited
    scores = [value(at, "accuracy", metric), gain, loss(at), value(at, "consistency"), perplexity(at)]
    return [named(at.data), rank, *scores]


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
            _change(data, trials[0], full),
            _tip(data, trials),
            special in trials,
        )
        for (layer, rho), trials in placed.items()
    ]
    unit = f"{metric} against the model as it is{', in points' if is_share(metric) else ''}"
    axes = (
        heatmap.Axis("layer", list(map(str, layers))),
        heatmap.Axis("rho, share of the rank kept", rhos),
    )
    title = (
        f"Change of the validation score ({metric}): {role}{'' if blocks == 1 else f', {blocks} row blocks'}"
    )
    drawing = heatmap.heatmap(title, *axes, tiles, most, unit)
    table = _twin(at, title, layers, rhos, placed, full)
    return Chart(title, drawing, _caption(data, placed, full, special), [tile.tip for tile in tiles], table)


def _layers(data: Mapping[str, Any]) -> list[int]:
    """All, or where only some were asked for those from the first to the last that was tried."""
    tried = [trial["layer"] for trial in data["trials"]]
    if data["settings"]["layers"] in ("all", "*") and min(tried) >= 0 and max(tried) < data["layers"]:
        return list(range(data["layers"]))
    return list(range(min(tried), max(tried) + 1))


def _placed(data: Mapping[str, Any], role: str, blocks: int, full: set[int]) -> dict[Place, list[int]]:
    """Layer and rho -> places of the trials there (several where it has experts), the best first."""
    placed: dict[Place, list[int]] = {}
    for index, trial in enumerate(data["trials"]):
        if (trial["role"], trial["blocks"]) == (role, blocks):
            placed.setdefault((trial["layer"], trial["rho"]), []).append(index)

    def rank(index: int) -> tuple[bool, float, float]:
        trial = data["trials"][index]
        return index not in full, -trial["accuracy"], trial["log_loss"]

    return {place: sorted(indices, key=rank) for place, indices in placed.items()}


def _change(data: Mapping[str, Any], index: int, full: set[int]) -> float | None:
    """Scores on fewer rows are not held against the base's on all of them."""
    if index not in full:
        return None
    step = data["trials"][index]["accuracy"] - data["base"]["accuracy"]
    return float(step) * _factor(data["task"]["metric"])


def _tip(data: Mapping[str, Any], trials: Sequence[int]) -> str:
    trial, base, metric = data["trials"][trials[0]], data["base"], data["task"]["metric"]
    parts = [f"rank {trial['rank']}", f"{metric} {shown(metric, trial['accuracy'])}"]
    if trial["rows"] == base["rows"]:
        parts[-1] += f" ({change(metric, trial['accuracy'] - base['accuracy'])})"
    parts.append(f"log loss {trial['log_loss']:.4f}")
    if trial["consistency"] is not None:
        parts.append(f"consistency {shown('consistency', trial['consistency'])}")
    if trial["perplexity"] is not None:
        parts.append(f"perplexity {trial['perplexity']:.2f}")
    rows = f"{trial['rows']:,} rows"
    parts.append(rows if trial["rows"] == base["rows"] else f"{rows} only, dropped before the others")
    several = f" (best of {len(trials)} matrices here)" if len(trials) > 1 else ""
    return f"{named(trial)}{several}: {', '.join(parts)}"


def _caption(
    data: Mapping[str, Any], placed: Mapping[Place, Sequence[int]], full: set[int], special: int | None
) -> str:
    """How to read this map; signs that it does not have are not explained."""
    sentences = ["Blue is better, orange worse; the deeper the more, by the square root."]
    if any(trials[0] not in full for trials in placed.values()):
        sentences.append(
            "A ring, or rows in brackets: dropped after fewer rows, so not held against the base."
        )
    if len(placed) < len(_layers(data)) * len(data["settings"]["rhos"]):
        sentences.append("Empty: not tried.")
    if any(special in trials for trials in placed.values()):
        sentences.append(f"Framed: {'tested, not chosen' if data['base_wins'] else 'chosen'}.")
    return " ".join(sentences)


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
        trial = at["trials"][placed[layer, rho][0]]
        if placed[layer, rho][0] in full:
            return moved(trial["accuracy"], at["base"]["accuracy"], metric)
        return ("(", trial.cell("rows"), " rows)")

    used = {layer for layer, _ in placed}
    rows = [[str(layer), *(cell(layer, rho) for rho in rhos)] for layer in layers if layer in used]
    return Table(title, ("layer", *(f">rho {rho}" for rho in rhos)), rows, MEASURED)


def trials(searches: Sequence[At]) -> str:
    """All trials of all searches as CSV, one a line, the model as it is first.

    Numbers are in full; `change` is empty for fewer rows.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["search", "task", "metric", *_TRIAL, "value", "change", *_SCORES, "chosen"])
    for at in searches:
        base, place = at.data["base"], best(at.data)
        writer.writerow(_line(at, base, at.data["base_wins"]))
        for index, trial in enumerate(at.data["trials"]):
            writer.writerow(_line(at, trial, index == place and not at.data["base_wins"]))
    return out.getvalue()


def _line(at: At, trial: dict[str, Any], chosen: bool) -> list[Any]:
    task, base = at.data["task"], at.data["base"]
    change = trial["accuracy"] - base["accuracy"] if trial["rows"] == base["rows"] else None
    cells = [at.source, task["name"], task["metric"], *(trial[key] for key in _TRIAL)]
    return [*cells, trial["accuracy"], change, *(trial[key] for key in _SCORES), int(chosen)]
