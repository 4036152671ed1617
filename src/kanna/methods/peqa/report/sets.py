"""All sets of a directory side by side: what they are, and what each changed."""

import math
from functools import partial

from kanna.reporting.blocks import MEASURED, At, Block, Cell, Paragraph, Table
from kanna.reporting.wording import filled, percent, size
from kanna.tasks.metrics.shown import shown

_ONE_FOR = {"channel": "each row", "group": "each group"}


def sets(shelf: At) -> list[Block]:
    """Sentences and two tables."""
    return [Paragraph(_sentence(shelf)), _what(shelf), *_scored(shelf)]


def _sentence(shelf: At) -> list[str]:
    count, active = len(shelf.data["sets"]), shelf.data["active"]
    there = "One set" if count == 1 else f"{count:,} sets"
    used = "none is in use: the model is as it was quantised" if active is None else f"in use is {active}"
    return [f"{there} of scales for the same whole numbers; {used}."]


def _what(shelf: At) -> Table:
    rows = [_row(one, shelf.data["active"]) for one in shelf["sets"].items()]
    columns = (
        "set",
        "in use",
        "a number for",
        ">numbers",
        ">size",
        "learnt from",
        ">steps",
        ">scales moved by",
        ">at most",
        ">signs changed",
    )
    return Table("What they are", *filled(columns, rows), MEASURED)


def _row(at: At, active: str | None) -> list[Cell]:
    record = at["record"]
    data = record.data
    found = data.get("moved") or {}
    mean = math.sqrt(sum(one[0] ** 2 for one in found.values()) / len(found)) if found else None
    return [
        data["name"],
        "in use" if data["name"] == active else "",
        _ONE_FOR[data["granularity"]],
        record.cell("numbers"),
        at.cell("bytes", size),
        str(data.get("config", {}).get("data") or ""),
        record["scores"].cell("steps") if data.get("scores") else "",
        "" if mean is None else percent(mean),
        percent(max(one[1] for one in found.values())) if found else "",
        record.cell("flipped") if "flipped" in data else "",
    ]


def _scored(shelf: At) -> list[Block]:
    """What was measured before and after, a row a measure; nothing where nothing was."""
    rows = [row for one in shelf["sets"].items() for row in _measures(one["record"])]
    columns = ("set", "measured", ">as it was quantised", ">with the set")
    return [Table("What they changed", columns, rows, MEASURED)] if rows else []


def _measures(record: At) -> list[list[Cell]]:
    name, scores = record.data["name"], record.get("scores")
    if scores is None:
        return []
    losses = (("held_out", "loss on rows that were not learnt"), ("text", "loss on text that was not learnt"))
    rows: list[list[Cell]] = [
        [name, words, *(scores.cell(f"{key}_loss_{when}", ".4f") for when in ("before", "after"))]
        for key, words in losses
        if scores.data.get(f"{key}_loss_before") is not None
    ]
    compared = scores.get("comparison")
    for task in [] if compared is None else compared["tasks"].items():
        form = partial(shown, task.data["metric"])
        measured = f"{task.data['task']} ({task.data['metric']})"
        rows.append([name, measured, task.cell("base", form), task.cell("new", form)])
    return rows
