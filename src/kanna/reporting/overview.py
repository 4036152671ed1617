"""All models on one table and in one picture: what each costs and how right it is."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kanna.reporting import charts
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Section, Table
from kanna.reporting.wording import is_share, percent, seconds, shown, size

# Batch and context of a bench.
Setting = tuple[int, int]
# Name and bytes: what tells two models apart whose directories are called alike.
Key = tuple[str, int]
# The worst judgement on a model is the one that its mark shows.
_WORST_FIRST = ("fail", "undecided", "pass", "base", "")


@dataclass(frozen=True)
class Asked:
    """A column: a task scored by a metric on so many rows."""

    task: str
    metric: str
    rows: int
    higher_is_better: bool


@dataclass(frozen=True)
class Scored:
    """A model on a task, from one comparison.

    Args:
        base: Bytes of the model it was compared with; None for that one itself.
        low: Lower end of the score's interval.
        high: Upper end.
        status: pass, fail, undecided, "base", or empty for what was not judged.
    """

    model: str
    asked: Asked
    bytes: At
    value: At
    base: At | None
    low: float
    high: float
    status: str

    @property
    def key(self) -> Key:
        return self.model, self.bytes.data


def overview(compared: Sequence[At], benches: Sequence[At]) -> list[Section]:
    """Nothing without a comparison, since then there is nothing to set side by side."""
    found = [scored for at in compared for scored in _scored(at)]
    if not found:
        return []
    setting = _common_setting(benches)
    latency = _latencies(benches, setting) if setting else {}
    blocks: list[Block] = [_table(found, latency, setting)]
    for asked in dict.fromkeys(one.asked for one in found):
        blocks += _charts(asked, [one for one in found if one.asked == asked], latency, setting)
    return [Section("Size, score and speed", blocks)]


def _scored(at: At) -> list[Scored]:
    found = []
    base, new = at["base"], at["model"]
    for task in at["tasks"].items():
        data, decision = task.data, task.data["decision"]
        asked = Asked(data["task"], data["metric"], data["rows"], data["higher_is_better"])
        before, ends = data["base"], _ends(data)
        status = decision["status"] if decision else ""
        found += [
            Scored(base.data["model"], asked, base["bytes"], task["base"], None, before, before, "base"),
            Scored(new.data["model"], asked, new["bytes"], task["new"], base["bytes"], *ends, status),
        ]
    return found


def _ends(task: Mapping[str, Any]) -> tuple[float, float]:
    """Interval of the new score: the base's plus that of the change; a share ends at 0 and 1."""
    if task["decision"] is None:
        return task["new"], task["new"]
    low, high = (task["base"] + end for end in task["decision"]["interval"])
    return (max(0.0, low), min(1.0, high)) if is_share(task["metric"]) else (low, high)


def _common_setting(benches: Sequence[At]) -> Setting | None:
    """The batch and context that most models were measured at; the first of several."""
    counted = Counter(
        (one["batch"], one["context"])
        for at in benches
        for model in at.data["models"]
        for one in model["settings"]
    )
    return counted.most_common(1)[0][0] if counted else None


def _latencies(benches: Sequence[At], setting: Setting) -> dict[Key, At]:
    """Model -> the median of its decode step; the last bench counts."""
    found = {}
    for at in benches:
        for model in at["models"].items():
            for one in model["settings"].items():
                if (one.data["batch"], one.data["context"]) == setting:
                    key = (model.data["model"], model.data["bytes_on_disk"])
                    found[key] = one["measured"]["decode"]["p50"]
    return found


def _table(found: Sequence[Scored], latency: Mapping[Key, At], setting: Setting | None) -> Table:
    asked = list(dict.fromkeys(one.asked for one in found))
    keys = list(dict.fromkeys(one.key for one in found))
    columns = ["model", ">weights", ">of its base", *(f">{_heading(one)}" for one in asked)]
    if setting is not None:
        columns.append(f">decode step, batch {setting[0]}, context {setting[1]}")
    rows = [_row([one for one in found if one.key == key], asked, latency, setting) for key in keys]
    return Table("All models", columns, rows, MEASURED)


def _heading(asked: Asked) -> str:
    direction = "" if asked.higher_is_better else ", lower is better"
    return f"{asked.task} ({asked.metric}{direction}; {asked.rows:,} rows)"


def _row(
    of_model: Sequence[Scored],
    asked: Sequence[Asked],
    latency: Mapping[Key, At],
    setting: Setting | None,
) -> list[Cell]:
    first = next((one for one in of_model if one.base is not None), of_model[0])
    cells: list[Cell] = [first.model, first.bytes.figure(size(first.bytes.data))]
    kept = None if first.base is None else first.bytes.data / first.base.data
    cells.append("" if first.base is None or kept is None else first.bytes.over(first.base, percent(kept)))
    for column in asked:
        value = next((one.value for one in of_model if one.asked == column), None)
        cells.append("" if value is None else value.figure(shown(column.metric, value.data)))
    if setting is not None:
        at = latency.get(first.key)
        cells.append("not measured" if at is None else at.figure(seconds(at.data)))
    return cells


def _charts(
    asked: Asked, found: Sequence[Scored], latency: Mapping[Key, At], setting: Setting | None
) -> list[Block]:
    unique = [one for one in _worst(found) if math.isfinite(one.low + one.value.data + one.high)]
    if len(unique) < 2:
        return []
    better = "Up and to the left is better." if asked.higher_is_better else "Down and to the left is better."
    rows = f"{asked.rows:,} rows."
    caption = f"{rows} {better} Whiskers: the base's score plus the interval of the change."
    name, share = f"{asked.task}: {asked.metric}", is_share(asked.metric)
    dots = [_dot(one, one.bytes.data / 1e6, latency) for one in unique]
    drawn: list[Block] = [_chart(f"{name} against size", dots, "weights on disk (MB)", name, share, caption)]
    timed = [_dot(one, 1e3 * latency[one.key].data, latency) for one in unique if one.key in latency]
    if len(timed) < 2 or setting is None:
        return drawn
    across = f"decode step, batch {setting[0]}, context {setting[1]} (ms, median)"
    missing = len(unique) - len(timed)
    left = f" {missing} without a measured latency are left out." if missing else ""
    return [*drawn, _chart(f"{name} against latency", timed, across, name, share, caption + left)]


def _worst(found: Sequence[Scored]) -> list[Scored]:
    """One mark per model, that of its worst judgement."""
    kept: dict[Key, Scored] = {}
    for one in sorted(found, key=lambda one: _WORST_FIRST.index(one.status)):
        kept.setdefault(one.key, one)
    return list(kept.values())


def _chart(title: str, dots: Sequence[charts.Dot], across: str, up: str, share: bool, caption: str) -> Chart:
    return Chart(title, charts.scatter(dots, across, up, share), caption, [dot.tip for dot in dots])


def _dot(one: Scored, x: float, latency: Mapping[Key, At]) -> charts.Dot:
    tip = [f"{one.model}: {one.asked.metric} {shown(one.asked.metric, one.value.data)}", size(one.bytes.data)]
    if one.key in latency:
        tip.append(f"{seconds(latency[one.key].data)} a decode step")
    tip += [one.status] if one.status else []
    return charts.Dot(one.model, x, one.value.data, one.low, one.high, one.status, ", ".join(tip))
