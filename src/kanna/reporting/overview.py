"""All models on one table and one picture: what each costs and how right it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kanna.reporting import charts
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Figure, Section, Table
from kanna.reporting.wording import is_share, percent, seconds, shown, size

Setting = tuple[int, int]


@dataclass(frozen=True)
class Scored:
    """A model on a task, from one comparison."""

    model: str
    task: str
    metric: str
    bytes: At
    value: At
    base: str
    low: float
    high: float
    status: str

    @property
    def key(self) -> tuple[str, int]:
        return self.model, self.bytes.data


def overview(compared: Sequence[At], benches: Sequence[At]) -> list[Section]:
    """Nothing without a comparison, since then there is nothing to set side by side."""
    found = [scored for at in compared for scored in _scored(at)]
    if not found:
        return []
    setting = _common_setting(benches)
    latency = _latencies(benches, setting) if setting else {}
    blocks: list[Block] = [_table(found, latency, setting)]
    for task, metric in dict.fromkeys((one.task, one.metric) for one in found):
        of_task = [one for one in found if (one.task, one.metric) == (task, metric)]
        blocks += _charts(task, metric, of_task, latency, setting)
    return [Section("Size, score and speed", blocks)]


def _scored(at: At) -> list[Scored]:
    found = []
    for task in at["tasks"].items():
        data = task.data
        decision = data["decision"]
        low, high = (0.0, 0.0) if decision is None else decision["interval"]
        ends = (data["base"] + low, data["base"] + high) if decision else (data["new"], data["new"])
        base, new = at.data["base"]["model"], at.data["model"]["model"]
        status = "" if decision is None else decision["status"]
        name, metric = data["task"], data["metric"]
        before = data["base"]
        found += [
            Scored(base, name, metric, at["base"]["bytes"], task["base"], "", before, before, "base"),
            Scored(new, name, metric, at["model"]["bytes"], task["new"], base, *ends, status),
        ]
    return found


def _common_setting(benches: Sequence[At]) -> Setting | None:
    """The batch and context that most models were measured at; the first of several."""
    counted = Counter(
        (one["batch"], one["context"])
        for at in benches
        for model in at.data["models"]
        for one in model["settings"]
    )
    return counted.most_common(1)[0][0] if counted else None


def _latencies(benches: Sequence[At], setting: Setting) -> dict[str, At]:
    """Model -> the median of its decode step; the last bench counts."""
    found = {}
    for at in benches:
        for model in at["models"].items():
            for one in model["settings"].items():
                if (one.data["batch"], one.data["context"]) == setting:
                    found[model.data["model"]] = one["measured"]["decode"]["p50"]
    return found


def _table(found: Sequence[Scored], latency: Mapping[str, At], setting: Setting | None) -> Table:
    tasks = list(dict.fromkeys((one.task, one.metric) for one in found))
    models = list(dict.fromkeys(one.key for one in found))
    columns = ["model", ">weights", ">of its base", *(f">{task} ({metric})" for task, metric in tasks)]
    if setting is not None:
        columns.append(f">decode step, batch {setting[0]}, context {setting[1]}")
    rows = [_row([one for one in found if one.key == key], tasks, latency, setting, found) for key in models]
    return Table("All models", columns, rows, MEASURED)


def _row(
    of_model: Sequence[Scored],
    tasks: Sequence[tuple[str, str]],
    latency: Mapping[str, At],
    setting: Setting | None,
    found: Sequence[Scored],
) -> list[Cell]:
    first = of_model[-1]
    base = next((one.bytes.data for one in found if one.model == first.base), None)
    cells: list[Cell] = [first.model, first.bytes.figure(size(first.bytes.data))]
    cells.append(percent(first.bytes.data / base) if base else "")
    for task, metric in tasks:
        values = [one.value for one in of_model if (one.task, one.metric) == (task, metric)]
        cells.append(values[0].figure(shown(metric, values[0].data)) if values else "")
    if setting is not None:
        at = latency.get(first.model)
        cells.append("not measured" if at is None else _time(at))
    return cells


def _time(at: At) -> Figure:
    return at.figure(seconds(at.data))


def _charts(
    task: str, metric: str, found: Sequence[Scored], latency: Mapping[str, At], setting: Setting | None
) -> list[Block]:
    unique = list({one.key: one for one in found}.values())
    share = is_share(metric)
    dots = [_dot(one, one.bytes.data / 1e6, latency) for one in unique]
    caption = "Whiskers are the interval of the change from the base, which itself is drawn without one."
    name = f"{task}: {metric}"
    drawn: list[Block] = [
        Chart(f"{name} against size", charts.scatter(dots, "weights on disk (MB)", name, share), caption)
    ]
    timed = [_dot(one, 1e3 * latency[one.model].data, latency) for one in unique if one.model in latency]
    if len(timed) < 2 or setting is None:
        return drawn
    across = f"decode step, batch {setting[0]}, context {setting[1]} (ms, median)"
    missing = len(unique) - len(timed)
    left = f" {missing} without a measured latency are left out." if missing else ""
    return [
        *drawn,
        Chart(f"{name} against latency", charts.scatter(timed, across, name, share), caption + left),
    ]


def _dot(one: Scored, x: float, latency: Mapping[str, At]) -> charts.Dot:
    tip: list[Any] = [one.model, f"{one.metric} {shown(one.metric, one.value.data)}", size(one.bytes.data)]
    if one.model in latency:
        tip.append(f"{seconds(latency[one.model].data)} a decode step")
    if one.status:
        tip.append(one.status)
    return charts.Dot(one.model, x, one.value.data, one.low, one.high, one.status, ", ".join(tip))
