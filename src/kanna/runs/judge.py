"""The end of every run that writes a model: is it still right on the user's tasks?"""

from pathlib import Path

from torch import nn

from kanna.progress import Progress
from kanna.result import replace
from kanna.runs.compare import compare
from kanna.runs.criteria import Criteria
from kanna.runs.opened import Opened
from kanna.tasks.evaluate import Prepared
from kanna.tasks.options import EvalOptions
from kanna.tasks.verdict.comparison import Comparison

_COLUMNS = ("task", "rows", "metric", "base", "this model", "interval of the change", "allowed", "verdict")


def judge(
    base: str | Path | Opened,
    written: Path | Opened,
    name: str,
    criteria: Criteria,
    options: EvalOptions,
    *,
    prepared: Prepared | None = None,
    loaded: nn.Module | None = None,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Comparison:
    """Compare a freshly written directory with its base.

    Args:
        base: Open already, it is neither hashed nor loaded again.
        written: It may still have a provisional name. Nobody has touched it since: it is not verified.
        name: The one it will have.
        prepared: What was read of the tasks, for any model and the same `options`, before the run began.
        loaded: The model of `written` in memory; used if `options` ask for that dtype and device.
    """
    new = Opened.open(written, trusted=True)
    if loaded is not None:
        new.hold(loaded)
    read = None if prepared is None else prepared.tasks
    comparison = compare(
        base, new, criteria, options, distribution=False, cache=cache, read=read, progress=progress
    )
    return replace(comparison, model=replace(comparison.model, model=name))


def comparison_rows(compared: Comparison) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns and rows of a model card's table."""
    rows: list[tuple[object, ...]] = []
    for task in compared.tasks:
        decision = task.decision
        judged = ("", "", "not judged")
        if decision is not None:
            low, high = decision.interval
            judged = (f"{low:+.4f} to {high:+.4f}", f"{decision.allowed:+.4f}", decision.status)
        values = (f"{task.base_value:.4f}", f"{task.new_value:.4f}")
        rows.append((task.task, task.rows, task.metric, *values, *judged))
    return _COLUMNS, rows
