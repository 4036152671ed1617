"""All trials of all searches as CSV, for a spreadsheet."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from kanna.methods.laser.report.search import best
from kanna.reporting.blocks import At

_COLUMNS = ("edit", "role", "layer", "matrix", "rho", "rank", "blocks", "rows")
_SCORES = ("log_loss", "consistency", "perplexity")


def trials(searches: Sequence[At]) -> str:
    """One line per trial, the model as it is first; numbers in full. `change` is empty for fewer rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["search", "task", "metric", *_COLUMNS, "value", "change", *_SCORES, "chosen"])
    for at in searches:
        base, place = at.data["base"], best(at.data)
        writer.writerow(_line(at, base, at.data["base_wins"]))
        for index, trial in enumerate(at.data["trials"]):
            writer.writerow(_line(at, trial, index == place and not at.data["base_wins"]))
    return out.getvalue()


def _line(at: At, trial: dict[str, Any], chosen: bool) -> list[Any]:
    task, base = at.data["task"], at.data["base"]
    change = trial["accuracy"] - base["accuracy"] if trial["rows"] == base["rows"] else None
    cells = [at.source, task["name"], task["metric"], *(trial[key] for key in _COLUMNS)]
    return [*cells, trial["accuracy"], change, *(trial[key] for key in _SCORES), int(chosen)]
