"""All models on one table and in one picture: what each costs and how right it is."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kanna.reporting import charts
from kanna.reporting.benches import Key, keys
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Section, Table
from kanna.reporting.wording import percent, seconds, size, units
from kanna.tasks.metrics.shown import is_share, shown

# Batch and context of a bench.
Setting = tuple[int, int]
# Lowest and highest that a time may be, over the one measured.
Noise = tuple[float, float]
# The worst judgement on a model is the one that its mark shows.
_WORST_FIRST = ("fail", "undecided", "pass", "base", "")


@dataclass(frozen=True)
class Asked:
    """A column: a task scored by a metric on so many rows."""

    task: str
    metric: str
    rows: int
    higher_is_better: bool
    kind: str

    @property
    def counted(self) -> str:
        """How many rows, or windows of text."""
        return f"{self.rows:,} {units(self.kind)}"


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
    models = [scored for at in compared for scored in _scored(at)]
    if not models:
        return []
    setting = _common_setting(benches)
    latency = _latencies(benches, setting) if setting else {}
    blocks: list[Block] = [_table(models, latency, setting)]
    alike = _alike(benches, setting) if setting else set()
    for asked in dict.fromkeys(model.asked for model in models):
        here = [model for model in models if model.asked == asked]
        noise = _noise(benches, setting) if setting else {}
        blocks += _charts(asked, here, latency, setting, noise, alike)
    return [Section("Size, score and speed", blocks)]


def _scored(at: At) -> list[Scored]:
    models = []
    base, new = at["base"], at["model"]
    for task in at["tasks"].items():
        data, decision = task.data, task.data["decision"]
        asked = Asked(data["task"], data["metric"], data["rows"], data["higher_is_better"], data["kind"])
        before, ends = data["base"], _ends(data)
        status = decision["status"] if decision else ""
        models += [
            Scored(base.data["model"], asked, base["bytes"], task["base"], None, before, before, "base"),
            Scored(new.data["model"], asked, new["bytes"], task["new"], base["bytes"], *ends, status),
        ]
    return models


def _ends(task: Mapping[str, Any]) -> tuple[float, float]:
    """Interval of the new score: the base's plus that of the change; a share ends at 0 and 1."""
    if task["decision"] is None:
        return task["new"], task["new"]
    low, high = (task["base"] + end for end in task["decision"]["interval"])
    return (max(0.0, low), min(1.0, high)) if is_share(task["metric"]) else (low, high)


def _common_setting(benches: Sequence[At]) -> Setting | None:
    """The batch and context that most models were measured at; the first of several."""
    counted = Counter(
        (setting["batch"], setting["context"])
        for at in benches
        for model in at.data["models"]
        for setting in model["settings"]
    )
    return counted.most_common(1)[0][0] if counted else None


def _latencies(benches: Sequence[At], setting: Setting) -> dict[Key, At]:
    """Model -> the median of its decode step; the last bench counts."""
    latencies: dict[Key, At] = {}
    for at in benches:
        for known, model in zip(keys(at), at["models"].items(), strict=True):
            for place in model["settings"].items():
                if (place.data["batch"], place.data["context"]) == setting:
                    latencies |= dict.fromkeys(known, place["measured"]["decode"]["p50"])
    return latencies


def _noise(benches: Sequence[At], setting: Setting) -> dict[Key, Noise]:
    """Model -> the interval of its speed against its base, paired by round, about what was measured."""
    noise: dict[Key, Noise] = {}
    for at in benches:
        known = keys(at)[0]
        for ratio in at.data["ratios"]:
            middle, low, high = ratio["decode"]
            if (ratio["batch"], ratio["context"]) == setting and low > 0:
                noise |= dict.fromkeys(known, (middle / high, middle / low))
    return noise


def _alike(benches: Sequence[At], setting: Setting) -> set[Key]:
    """Models whose speed, paired by round with that of their base, shows no clear difference."""
    alike: set[Key] = set()
    for at in benches:
        for ratio in at.data["ratios"]:
            _, low, high = ratio["decode"]
            if (ratio["batch"], ratio["context"]) == setting and low <= 1 <= high:
                alike |= set(keys(at)[0])
    return alike


def _table(models: Sequence[Scored], latency: Mapping[Key, At], setting: Setting | None) -> Table:
    asked = list(dict.fromkeys(one.asked for one in models))
    keys = list(dict.fromkeys(one.key for one in models))
    columns = ["model", ">weights", ">of its base", *(f">{_heading(one)}" for one in asked)]
    if setting is not None:
        columns.append(f">decode step, batch {setting[0]}, context {setting[1]}")
    rows = [_row([one for one in models if one.key == key], asked, latency, setting) for key in keys]
    return Table("All models", columns, rows, MEASURED)


def _heading(asked: Asked) -> str:
    direction = "" if asked.higher_is_better else ", lower is better"
    return f"{asked.task} ({asked.metric}{direction}; {asked.counted})"


def _row(
    of_model: Sequence[Scored],
    asked: Sequence[Asked],
    latency: Mapping[Key, At],
    setting: Setting | None,
) -> list[Cell]:
    first = next((model for model in of_model if model.base is not None), of_model[0])
    cells: list[Cell] = [first.model, first.bytes.figure(size(first.bytes.data))]
    base = first.base
    cells.append("" if base is None else first.bytes.over(base, percent(first.bytes.data / base.data)))
    for column in asked:
        value = next((model.value for model in of_model if model.asked == column), None)
        cells.append("" if value is None else value.figure(shown(column.metric, value.data)))
    if setting is not None:
        at = latency.get(first.key)
        cells.append("not measured" if at is None else at.figure(seconds(at.data)))
    return cells


def _charts(
    asked: Asked,
    models: Sequence[Scored],
    latency: Mapping[Key, At],
    setting: Setting | None,
    noise: Mapping[Key, Noise],
    alike: Collection[Key],
) -> list[Block]:
    unique = [model for model in _worst(models) if math.isfinite(model.low + model.value.data + model.high)]
    if len(unique) < 2:
        return []
    better = "Up and to the left is better." if asked.higher_is_better else "Down and to the left is better."
    caption = f"{asked.counted}. {better} Whiskers: the base's score plus the interval of the change."
    name, share = f"{asked.task}: {asked.metric}", is_share(asked.metric)
    dots = [_dot(model, model.bytes.data / 1e6, latency) for model in unique]
    drawn: list[Block] = [_chart(f"{name} against size", dots, "weights on disk (MB)", name, share, caption)]
    timed = [
        _dot(model, 1e3 * latency[model.key].data, latency, noise.get(model.key, (1.0, 1.0)))
        for model in unique
        if model.key in latency
    ]
    if len(timed) < 2 or setting is None:
        return drawn
    across = f"decode step, batch {setting[0]}, context {setting[1]} (ms, median)"
    missing = len(unique) - len(timed)
    left = f" {missing} without a measured latency are left out." if missing else ""
    level = "" if not noise else " Level ones: the interval of its speed against the base, about its median."
    if same := [model.model for model in unique if model.key in latency and model.key in alike]:
        level += (
            " No clear difference in speed from the base, round by round, however far apart they stand: "
            f"{', '.join(same)}."
        )
    return [*drawn, _chart(f"{name} against latency", timed, across, name, share, caption + level + left)]


def _worst(models: Sequence[Scored]) -> list[Scored]:
    """One mark per model, that of its worst judgement."""
    kept: dict[Key, Scored] = {}
    for model in sorted(models, key=lambda model: _WORST_FIRST.index(model.status)):
        kept.setdefault(model.key, model)
    return list(kept.values())


def _chart(title: str, dots: Sequence[charts.Dot], across: str, up: str, share: bool, caption: str) -> Chart:
    return Chart(title, charts.scatter(dots, across, up, share), caption, [dot.tip for dot in dots])


def _dot(model: Scored, x: float, latency: Mapping[Key, At], noise: Noise | None = None) -> charts.Dot:
    metric = model.asked.metric
    tip = [
        f"{model.model}: {metric} {shown(metric, model.value.data)}",
        size(model.bytes.data),
    ]
    if model.key in latency:
        tip.append(f"{seconds(latency[model.key].data)} a decode step")
    tip += [model.status] if model.status else []
    side = None if noise is None or noise == (1.0, 1.0) else (x * noise[0], x * noise[1])
    if side is not None:
        tip.append(f"by its speed against the base {seconds(side[0] / 1e3)} to {seconds(side[1] / 1e3)}")
    said = ", ".join(tip)
    return charts.Dot(model.model, x, model.value.data, model.low, model.high, model.status, said, side)
