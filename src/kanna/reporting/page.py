"""From results to the blocks of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kanna.reporting import charts, costs
from kanna.reporting.blocks import (
    MEASURED,
    At,
    Block,
    Cell,
    Chart,
    Details,
    Example,
    Examples,
    Page,
    Paragraph,
    Section,
    Table,
    Verdict,
)
from kanna.reporting.overview import overview
from kanna.reporting.sources import Source
from kanna.reporting.wording import change, percent, seconds, shown, size

# A longer list says no more: harm is concentrated, or it is everywhere.
_MOST_BLAMED = 10
_JUDGED = {"pass": "within its tolerance", "fail": "beyond its tolerance", "undecided": "not enough data"}


def page(sources: Sequence[Source], title: str) -> Page:
    """The page of all sources: verdicts, overview, then each result with its tables."""
    places = [(source, At(source.name, source.data)) for source in sources]
    compared = comparisons(places)
    benches = [at for source, at in places if source.kind == "bench"]
    sections = [
        *overview(compared, benches),
        *(_comparison(at) for at in compared),
        *(_evaluation(at) for source, at in places if source.kind == "eval"),
        *(costs.bench(at) for at in benches),
        *(_lineage(at) for source, at in places if source.kind == "model"),
    ]
    data = {source.name: source.data for source in sources}
    return Page(title, [_verdict(at) for at in compared], sections, data)


def comparisons(places: Sequence[tuple[Source, At]]) -> list[At]:
    """Those that `kanna compare` wrote, and those in the lineage of models that it did not look at."""
    found = [at for source, at in places if source.kind == "compare"]
    known = {(at.data["base"]["model"], at.data["model"]["model"]) for at in found}
    for source, at in places:
        if source.kind != "model":
            continue
        for step in at["lineage"]["steps"].items():
            inside = (step.data.get("scores") or {}).get("comparison")
            if inside and (inside["base"]["model"], inside["model"]["model"]) not in known:
                found.append(step["scores"]["comparison"])
    return found


def _verdict(at: At) -> Verdict:
    new, base = at.data["model"], at.data["base"]
    share = new["bytes"] / base["bytes"]
    weights = f"{size(new['bytes'])}, {percent(share)} of {base['model']}"
    return Verdict(at.data["status"], f"{new['model']}: {weights}", at.data["explanation"])


def _comparison(at: At) -> Section:
    blocks: list[Block] = [_tasks(at)]
    blocks += _forest(at)
    blocks += _distribution(at)
    blocks += _blame(at)
    blocks += [Paragraph([f"Note: {note}"]) for note in _all_notes(at.data)]
    blocks += [found for task in at["tasks"].items() if (found := _examples(at, task)) is not None]
    return Section(f"{at.data['model']['model']} against {at.data['base']['model']}", blocks)


def _tasks(at: At) -> Table:
    columns = ("task", ">rows", "metric", f">{at.data['base']['model']}", f">{at.data['model']['model']}",
               ">change", ">interval", ">allowed", "verdict", ">lost", ">gained",
               ">constant answer", ">answer in prompt")  # fmt: skip
    return Table("Scores", columns, [_task(one) for one in at["tasks"].items()], MEASURED)


def _task(at: At) -> list[Cell]:
    data, metric = at.data, at.data["metric"]
    name = f"{data['task']} (guard)" if data["guard"] else data["task"]
    scores = [at[key].figure(shown(metric, data[key])) for key in ("base", "new")]
    return [
        name,
        at["rows"].figure(f"{data['rows']:,}"),
        metric,
        *scores,
        *_decided(at, metric),
        *_floors(at),
    ]


def _decided(at: At, metric: str) -> list[Cell]:
    decision = at.get("decision")
    counted = [at[key].figure(f"{at.data[key]:,}") for key in ("lost", "gained")]
    if decision is None:
        return [change(metric, at.data["new"] - at.data["base"]), "", "", "not judged", *counted]
    found = decision.data
    flips: list[Cell] = list(counted) if found["lost"] is not None else ["", ""]
    low, high = found["interval"]
    return [
        decision["difference"].figure(change(metric, found["difference"])),
        f"{change(metric, low)} to {change(metric, high)}",
        decision["allowed"].figure(f"{change(metric, found['allowed'])} ({found['tolerance']})"),
        _JUDGED.get(found["status"], found["status"]),
        *flips,
    ]


def _floors(at: At) -> list[Cell]:
    floors = at["floors"]
    return [
        floors[key].figure(shown(key, floors.data[key])) if key in floors.data else ""
        for key in ("constant", "answer_in_prompt")
    ]


def _forest(at: At) -> list[Block]:
    bars = [bar for task in at.data["tasks"] if (bar := _bar(task)) is not None]
    if not bars:
        return []
    sure = percent(at.data["confidence"])
    caption = (
        "0 % is as good as the base, 100 % the whole drop that is allowed; further right is worse. A task "
        f"passes when its whole bar lies left of the dashed line; each end of a bar holds at {sure}."
    )
    return [Chart("How much of the allowed drop was used", charts.forest(bars), caption)]


def _bar(task: Mapping[str, Any]) -> charts.Bar | None:
    """None where no drop is allowed at all, so that there is no share of it."""
    decision = task["decision"]
    if decision is None or not decision["allowed"]:
        return None
    allowed, metric = decision["allowed"], task["metric"]
    low, high = sorted(end / allowed for end in decision["interval"])
    ends = " to ".join(change(metric, end) for end in decision["interval"])
    tip = (
        f"{task['task']}: {change(metric, decision['difference'])}, interval {ends}, "
        f"allowed {change(metric, allowed)}"
    )
    label = f"{task['task']} ({metric})"
    return charts.Bar(label, decision["difference"] / allowed, low, high, decision["status"], tip)


def _distribution(at: At) -> list[Block]:
    found = at.get("distribution")
    if found is None:
        return []
    data = found.data
    return [
        Paragraph(
            [
                "Next-token distributions, no task needed: KL divergence ",
                found["kl_mean"].figure(f"{data['kl_mean']:.4f}"),
                " nats per token (99th percentile ",
                found["kl_p99"].figure(f"{data['kl_p99']:.3f}"),
                "); the same first choice after ",
                found["top1_agreement"].figure(percent(data["top1_agreement"])),
                " of ",
                found["tokens"].figure(f"{data['tokens']:,}"),
                " tokens.",
            ]
        )
    ]


def _blame(at: At) -> list[Block]:
    if not at.data.get("blame"):
        return []
    rows: list[list[Cell]] = [
        [one.data["matrix"], *(one[key].figure(str(one.data[key])) for key in ("repaired", "undone"))]
        for one in at["blame"].items()[:_MOST_BLAMED]
    ]
    columns = ("matrix put back alone", ">flips repaired", ">gains undone")
    return [Table("Which matrix does the harm", columns, rows, MEASURED)]


def _all_notes(data: Mapping[str, Any]) -> list[str]:
    of_tasks = [f"{task['task']}: {note}" for task in data["tasks"] for note in task.get("notes", ())]
    return [*data.get("notes", ()), *of_tasks]


def _examples(at: At, task: At) -> Examples | None:
    flips = task.data.get("flips")
    if not flips:
        return None
    found = [
        Example(
            f"row {flip['row']}",
            flip["direction"],
            flip["prompt"],
            flip["expected"],
            flip["base"],
            flip["new"],
        )
        for flip in flips
    ]
    title = f"{task.data['task']}: what flipped, the worst first"
    return Examples(title, at.data["base"]["model"], at.data["model"]["model"], found)


def _evaluation(at: At) -> Section:
    rows = [_score(one) for one in at["tasks"].items()]
    columns = ("task", ">rows", "metric", ">value", ">constant answer", ">answer in prompt")
    blocks: list[Block] = [Table("Scores", columns, rows, MEASURED)]
    rest = [row for one in at["tasks"].items() for row in _rest(one)]
    if rest:
        blocks.append(Table("Everything else that was scored", ("task", "metric", ">value"), rest, MEASURED))
    for task in at.data["tasks"]:
        blocks += [Paragraph([f"Note: {task['task']}: {note}"]) for note in task["notes"]]
    return Section(f"{at.data['model']} on its own", blocks)


def _score(at: At) -> list[Cell]:
    data = at.data
    value = at["value"].figure(shown(data["metric"], data["value"]))
    rows = at["rows"].figure(f"{data['rows']:,}")
    return [data["task"], rows, data["metric"], value, *_floors(at)]


def _rest(at: At) -> list[list[Cell]]:
    metrics = at["metrics"]
    return [
        [at.data["task"], name, metrics[name].figure(shown(name, value))]
        for name, value in metrics.data.items()
        if name != at.data["metric"]
    ]


def _lineage(at: At) -> Section:
    lineage, run = at["lineage"], at.data["run"]
    base = lineage.data["base"]
    blocks: list[Block] = [
        Paragraph([f"Made from {base['name']}, whose weights hash to {base['hash'][:16]}."])
    ]
    rows = [_step(number, step) for number, step in enumerate(lineage["steps"].items(), 1)]
    blocks.append(
        Table("Steps", (">step", "method", ">bytes before", ">after", ">seed", "versions"), rows, MEASURED)
    )
    for number, step in enumerate(lineage.data["steps"], 1):
        said = yaml.safe_dump(step["config"], allow_unicode=True).strip()
        blocks.append(Details(f"Step {number}, full configuration", said))
    if run is not None:
        blocks.append(_took(at["run"]))
    files = yaml.safe_dump(lineage.data.get("files", {}), width=200).strip()
    blocks.append(Details("sha256 of the files", files))
    return Section(f"Lineage of {at.name}", blocks)


def _step(number: int, at: At) -> list[Cell]:
    scores = at.data.get("scores") or {}
    weights: list[Cell] = [
        at["scores"][key].figure(size(scores[key])) if key in scores else ""
        for key in ("model_bytes_before", "model_bytes_after")
    ]
    seed = at.get("seed")
    versions = ", ".join(f"{name} {found}" for name, found in (at.data.get("versions") or {}).items())
    return [
        str(number),
        at.data["method"],
        *weights,
        "" if seed is None else seed.figure(str(seed.data)),
        versions,
    ]


def _took(at: At) -> Paragraph:
    cells: list[Cell] = []
    if at.get("seconds") is not None:
        cells += ["The run took ", at["seconds"].figure(seconds(at.data["seconds"]))]
    if at.get("peak_memory_bytes") is not None:
        cells += [
            ", its peak memory was ",
            at["peak_memory_bytes"].figure(size(at.data["peak_memory_bytes"])),
        ]
    return Paragraph([*cells, "."] if cells else [])
