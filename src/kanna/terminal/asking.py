"""Options that several verbs share, those of tasks among them, and how scores are drawn."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic.config import JsonDict

from kanna.configuration import Configuration, setting
from kanna.errors import InputError
from kanna.tasks.options import CONFIDENCE, EvalOptions
from kanna.terminal.completing import DEVICES, one_of
from kanna.terminal.flags import Only

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.criteria import Criteria
    from kanna.tasks.records import Evaluation
    from kanna.tasks.verdict.comparison import Comparison

VERDICT_FAILED = 3
_TASK: JsonDict = {"group": "Tasks"}


class Judging(Configuration):
    """On which tasks a model is judged, and what may be lost."""

    task: tuple[str, ...] = setting(
        (), "Rows with answers or choices, or lm_eval:NAME.", {**_TASK, "metavar": "FILE"}
    )
    max_drop: str | None = setting(
        None, "Allowed drop: 1% of the base's score, or 1pt.", {**_TASK, "metavar": "DROP"}
    )
    tolerance: Path | None = setting(
        None, "YAML: tasks, each with its own drop.", {**_TASK, "metavar": "FILE"}
    )
    guard: tuple[str, ...] = setting(
        (), "Another task that must not suffer.", {**_TASK, "metavar": "FILE=DROP"}
    )
    confidence: float | None = setting(None, f"Of the verdict, one-sided ({CONFIDENCE}).", _TASK)
    accept_empty: bool = setting(
        False, "Let it pass where the base does no better than one constant answer.", _TASK
    )

    def criteria(self) -> "Criteria | None":
        """What is asked for; None where no task is named.

        Raises:
            InputError: Both ways of saying it at once, or either is wrong.
        """
        from kanna.runs.criteria import criteria_of, read_criteria

        if self.tolerance is not None:
            if self.task or self.max_drop or self.guard or self.confidence is not None or self.accept_empty:
                raise InputError(
                    "--tolerance goes without --task, --max-drop, --guard, --confidence and --accept-empty",
                    "say it all in the file",
                )
            return read_criteria(self.tolerance)
        if not self.task and self.max_drop is not None:
            raise InputError("--max-drop says nothing without a task", "add --task FILE")
        if not self.task and not self.guard:
            return None
        sure = CONFIDENCE if self.confidence is None else self.confidence
        return criteria_of(self.task, self.max_drop, self.guard, sure, self.accept_empty)


Tasks = Annotated[Judging, Only(("task",))]
ToleranceFile = Annotated[Judging, Only(("tolerance",))]
Scoring = Annotated[
    EvalOptions, Only(("metric", "context", "limit", "chat", "new_tokens", "stop", "joiner", "device"))
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do not take scores from the cache.")]
Results = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Also write the result as JSON there.")
]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Directory of a model, or a hub id that is in the local cache."),
]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="Directory of a model that kanna wrote.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="New directory for the result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there, once the new one is complete.")]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="Where to compute: cpu, cuda, cuda:1, mps.", autocompletion=one_of(DEVICES)
    ),
]
Select = Annotated[
    str | None,
    typer.Option(
        "--select", metavar="EXPR", help="Which matrices: 'mlp', 'q,k,v@4-', 'all,!down@0', 're:REGEX'."
    ),
]


def render_evaluation(console: "Console", result: "Evaluation") -> None:
    """What a page shows of it."""
    from kanna.reporting.blocks import At
    from kanna.reporting.comparison import evaluation
    from kanna.reporting.console import draw

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
