"""Options of the verbs that evaluate on tasks, and how their results are drawn."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.tasks.options import EvalOptions
from kanna.terminal.flags import Only

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.criteria import Criteria
    from kanna.tasks.records import Evaluation
    from kanna.tasks.verdict.comparison import Comparison

VERDICT_FAILED = 3
_TASK = "Tasks"

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", metavar="FILE", help="Rows with answers or choices, or lm_eval:NAME.", rich_help_panel=_TASK
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="DROP",
        help="Allowed drop: 1% of the base's score, or 1pt.",
        rich_help_panel=_TASK,
    ),
]
ToleranceFile = Annotated[
    Path | None,
    typer.Option(
        "--tolerance", metavar="FILE", help="YAML: tasks, each with its own drop.", rich_help_panel=_TASK
    ),
]
Guards = Annotated[
    list[str] | None,
    typer.Option(
        "--guard", metavar="FILE=DROP", help="Another task that must not suffer.", rich_help_panel=_TASK
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option("--confidence", help="Of the verdict, one-sided (0.95).", rich_help_panel=_TASK),
]
Scoring = Annotated[EvalOptions, Only(("metric", "context", "limit", "device"))]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do not take scores from the cache.")]
Results = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Also write the result as JSON there.")
]


def criteria_from(
    tasks: list[str] | None,
    max_drop: str | None,
    tolerance: Path | None,
    guards: list[str] | None,
    confidence: float | None,
) -> "Criteria | None":
    """What the options ask for; None where they name no task.

    Raises:
        InputError: Both ways of saying it at once, or either is wrong.
    """
    from kanna.runs.criteria import criteria_of, read_criteria
    from kanna.runs.tolerances import CONFIDENCE

    if tolerance is not None:
        if tasks or max_drop or guards or confidence is not None:
            raise InputError(
                "--tolerance goes without --task, --max-drop, --guard and --confidence",
                "say it all in the file",
            )
        return read_criteria(tolerance)
    if not tasks and max_drop is not None:
        raise InputError("--max-drop says nothing without a task", "add --task FILE")
    if not tasks and not guards:
        return None
    sure = CONFIDENCE if confidence is None else confidence
    return criteria_of(tasks or (), max_drop, guards or (), sure)


def render_evaluation(console: "Console", result: "Evaluation") -> None:
    """What a page shows of it."""
    from kanna.reporting.blocks import At
    from kanna.reporting.console import draw
    from kanna.reporting.evaluation import evaluation

    draw(console, evaluation(At(result.model, result.to_dict(records=False))))


def render_comparison(console: "Console", result: "Comparison") -> None:
    """What a page shows of it, less the drawing, whose figures the table has; the verdict last."""
    from kanna.reporting.blocks import At, Chart, Section
    from kanna.reporting.comparison import comparison
    from kanna.reporting.console import draw
    from kanna.reporting.verdicts import titles, verdict

    at = At(result.model.model, result.to_dict())
    (title,) = titles([at])
    blocks = [block for block in comparison(at, title).blocks if not isinstance(block, Chart)]
    draw(console, Section(title, [*blocks, replace(verdict(at, title), evidence=())]))
