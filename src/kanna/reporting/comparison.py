"""The section of one comparison: scores, the allowed drop, what flipped, and why; and of one model alone."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from kanna.reporting import charts
from kanna.reporting.blocks import (
    MEASURED,
    At,
    Block,
    Cell,
    Chart,
    Example,
    Examples,
    Paragraph,
    Part,
    Section,
    Table,
    Term,
)
from kanna.reporting.verdicts import guarded
from kanna.reporting.wording import counted, difference, filled, interval, moved, percent
from kanna.reporting.words import term
from kanna.tasks.metrics.plain import KL
from kanna.tasks.metrics.shown import change, shown
from kanna.tasks.records import TEXT

# A longer list says no more: harm is concentrated, or it is everywhere.
_MOST_BLAMED = 10
_JUDGED = {"pass": "pass", "fail": "fail", "undecided": "undecided"}


def comparison(at: At, title: str) -> Section:
    """Tables, drawing and examples of what `kanna compare` found."""
    blocks: list[Block] = [_tasks(at), *_how(at), *_forest(at), *_distribution(at), *_blame(at)]
    notes = [f"{task['task']}: {note}" for task in at.data["tasks"] for note in task["notes"]]
    blocks += [Paragraph([f"Note: {note}"]) for note in (*at.data["notes"], *notes)]
    blocks += [examples for task in at["tasks"].items() for examples in _examples(at, task)]
    return Section(title, blocks)


def named(task: Mapping[str, Any]) -> Cell:
    """A task's metric, and the direction where it is not the usual one."""
    metric = term(str(task["metric"]))
    return metric if task["higher_is_better"] else (metric, " (lower is better)")


def floors(at: At) -> list[Cell]:
    """What an answer that ignores the question, and one copied from it, would score."""
    return [at["floors"].cell(key, partial(shown, key)) for key in ("constant", "answer_in_prompt")]


def _tasks(at: At) -> Table:
    columns = ("task", ">rows", "metric", f">{at.data['base']['model']}", f">{at.data['model']['model']}",
               ">change", ">interval", ">allowed", "verdict", ">lost, gained",
               ">constant answer", ">answer in prompt")  # fmt: skip
    return Table("Scores", *filled(columns, [_task(task) for task in at["tasks"].items()]), MEASURED)


def _task(at: At) -> list[Cell]:
    metric = at.data["metric"]
    scores = [at.cell(key, partial(shown, metric)) for key in ("base", "new")]
    rows = counted(at)
    return [guarded(at.data), rows, named(at.data), *scores, *_decided(at, metric), *floors(at)]


def _decided(at: At, metric: str) -> list[Cell]:
    decision = at.get("decision")
    flips = (at.cell("lost"), ", ", at.cell("gained"))
    if decision is None:
        change_seen = moved(at["new"], at["base"], metric)
        return [change_seen, "", "", "not judged", "" if at.data["kind"] == TEXT else flips]
    allowed = decision.cell("allowed", partial(change, metric))
    return [
        difference(decision, metric),
        tuple(interval(decision, metric)),
        (allowed, f" ({decision.data['tolerance']})"),
        _JUDGED[decision.data["status"]],
        "" if decision.data["lost"] is None else flips,
    ]


def _how(at: At) -> list[Block]:
    """How the intervals came about."""
    methods = {
        task["decision"]["method"]: task["task"] for task in at.data["tasks"] if task["decision"] is not None
    }
    if not methods:
        return []
    how = "; ".join(f"{task}: {method}" for method, task in methods.items())
    if len(methods) == 1:
        (how,) = methods
    sure = at.cell("confidence", percent)
    return [Paragraph(["Each end of an interval holds at ", sure, f" confidence ({how})."])]


def _forest(at: At) -> list[Block]:
    bars = [bar for task in at.data["tasks"] if (bar := _bar(task)) is not None]
    if not bars:
        return []
    sure = percent(at.data["confidence"])
    caption = (
        "0 % is as good as the base, 100 % the whole drop that is allowed; further right is worse. A task "
        f"passes when its whole bar lies left of the dashed line; each end of a bar holds at {sure}. An "
        "arrow goes on beyond the drawing."
    )
    if len(bars) < sum(task["decision"] is not None for task in at.data["tasks"]):
        caption += " Tasks that allow no drop at all have no share of it and are left out."
    title = "How much of the allowed drop was used"
    return [Chart(title, charts.forest(bars), caption, [bar.tip for bar in bars])]


def _bar(task: Mapping[str, Any]) -> charts.Bar | None:
    """None where no drop is allowed at all, so that there is no share of it, or a score is not finite."""
    decision = task["decision"]
    if decision is None or not decision["allowed"]:
        return None
    allowed, metric = decision["allowed"], task["metric"]
    middle = decision["difference"] / allowed
    low, high = sorted(end / allowed for end in decision["interval"])
    if not all(map(math.isfinite, (low, middle, high))):
        return None
    ends = " to ".join(change(metric, end) for end in decision["interval"])
    tip = (
        f"{task['task']}: {change(metric, decision['difference'])}, interval {ends}, "
        f"allowed {change(metric, allowed)}"
    )
    return charts.Bar(f"{task['task']} ({metric})", middle, low, high, decision["status"], tip)


def _distribution(at: At) -> list[Block]:
    apart = at.get("distribution")
    if apart is None:
        return []
    cells: list[Part] = [
        "Next-token distributions, no task needed: ",
        Term("KL divergence", KL),
        " ",
        apart.cell("kl_mean", ".4f"),
        " nats per token (99th percentile ",
        apart.cell("kl_p99", ".3f"),
        "); the same first choice after ",
        apart.cell("top1_agreement", percent),
        " of ",
        apart.cell("tokens"),
        " tokens.",
    ]
    return [Paragraph(cells)]


def _blame(at: At) -> list[Block]:
    blamed = at.data.get("blame")
    if not blamed:
        return [] if blamed is None else [Paragraph(["No answer flipped, so no matrix was put back."])]
    if any(task["lost"] for task in at.data["tasks"]) and not any(one["repaired"] for one in blamed):
        none = (
            f"Of {len(blamed):,} changed matrices, no single one repairs anything when it is put back alone."
        )
        return [Paragraph([none])]
    rows: list[list[Cell]] = [
        [matrix.data["matrix"], *(matrix.cell(key, "d") for key in ("repaired", "undone"))]
        for matrix in at["blame"].items()[:_MOST_BLAMED]
    ]
    columns = ("matrix put back alone", ">flips repaired", ">gains undone")
    harm = Table("Which matrix does the harm", columns, rows, MEASURED)
    more = len(blamed) - len(rows)
    return [harm, Paragraph([f"and {more:,} more matrices, which repair no more"])] if more else [harm]


def _examples(at: At, task: At) -> list[Block]:
    flips = task.data.get("flips")
    if not flips:
        return []
    answers = ("expected", "base", "new")
    examples = [
        Example(
            f"row {flip['row'] + 1}",
            flip["direction"],
            flip["prompt"],
            *(flip[key].strip() for key in answers),
        )
        for flip in flips
    ]
    title = f"{task.data['task']}: what flipped, the worst first"
    blocks: list[Block] = [Examples(title, at.data["base"]["model"], at.data["model"]["model"], examples)]
    more = task.data["lost"] + task.data["gained"] - len(examples)
    return [*blocks, Paragraph([f"and {more:,} more that flipped"])] if more > 0 else blocks


def evaluation(at: At) -> Section:
    """The headline metric of each task, then all other metrics, and what the reader must know."""
    tasks = at["tasks"].items()
    columns = ("task", ">rows", "metric", ">value", ">constant answer", ">answer in prompt")
    blocks: list[Block] = [Table("Scores", *filled(columns, [_score(task) for task in tasks]), MEASURED)]
    rest = [row for task in tasks for row in _other_metrics(task)]
    if rest:
        blocks.append(Table("Everything else that was scored", ("task", "metric", ">value"), rest, MEASURED))
    for task in tasks:
        blocks += [Paragraph([f"Note: {task.data['task']}: {note}"]) for note in task.data["notes"]]
    return Section(f"{at.data['model']} on its own", blocks)


def _score(at: At) -> list[Cell]:
    value = at.cell("value", partial(shown, at.data["metric"]))
    return [at.data["task"], counted(at), named(at.data), value, *floors(at)]


def _other_metrics(at: At) -> list[list[Cell]]:
    metrics = at["metrics"]
    return [
        [at.data["task"], term(name), metrics.cell(name, partial(shown, name))]
        for name in metrics.data
        if name != at.data["metric"]
    ]
