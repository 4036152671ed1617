"""Options of the verbs that evaluate on tasks, and how their results are drawn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.criteria import Criteria
    from kanna.tasks.records import Evaluation
    from kanna.tasks.verdict.comparison import Comparison

VERDICT_FAILED = 3
_TASK, _HOW = "Tasks", "How it is scored"

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
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="acc, acc_norm | greedy, exact, contains, numeric, f1, bleu, rougeL, regex:..., topK | "
        "file.py:function | cmd:COMMAND",
        rich_help_panel=_HOW,
    ),
]
Context = Annotated[
    int | None, typer.Option("--context", min=2, help="Most tokens read at once.", rich_help_panel=_HOW)
]
Stride = Annotated[
    int | None,
    typer.Option("--stride", min=1, help="Of perplexity windows; half the context.", rich_help_panel=_HOW),
]
TextTokens = Annotated[
    int | None,
    typer.Option(
        "--tokens", min=2, help="Score only the first so many tokens of text.", rich_help_panel=_HOW
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Rows per task at most.", rich_help_panel=_HOW)
]
Chat = Annotated[
    bool, typer.Option("--chat", help="Put prompts into the chat template.", rich_help_panel=_HOW)
]
NewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=1, help="Of a written answer.", rich_help_panel=_HOW),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="Ends a written answer; a line's end.", rich_help_panel=_HOW),
]
Legacy = Annotated[
    bool,
    typer.Option("--legacy-contains", help="Also look into the prompt, as papers did.", rich_help_panel=_HOW),
]
RefuseLong = Annotated[
    bool, typer.Option("--refuse-long", help="Refuse prompts that do not fit.", rich_help_panel=_HOW)
]
Costs = Annotated[
    Path | None,
    typer.Option("--costs", metavar="FILE", help="Cost per expected and predicted.", rich_help_panel=_HOW),
]
Shots = Annotated[int | None, typer.Option("--shots", min=0, help="Of lm_eval tasks.", rich_help_panel=_HOW)]
Include = Annotated[
    Path | None,
    typer.Option("--include", metavar="DIR", help="Your own lm_eval tasks.", rich_help_panel=_HOW),
]
Batch = Annotated[
    int, typer.Option("--batch-tokens", min=1, help="Tokens per forward pass.", rich_help_panel=_HOW)
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", metavar="NAME", help="To compute in: float32, bfloat16, float16.", rich_help_panel=_HOW
    ),
]
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


def stops(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Backslash escapes in --stop mean what they mean in most languages."""
    if given is None:
        return None
    return tuple(one.replace("\\n", "\n").replace("\\t", "\t") for one in given)
