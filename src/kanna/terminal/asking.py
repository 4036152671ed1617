"""Options of the verbs that evaluate on tasks, and how their results are drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.reporting.wording import change, shown

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.compare import Comparison, TaskComparison
    from kanna.runs.criteria import Criteria
    from kanna.tasks.records import Evaluation, TaskScore

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
    from kanna.runs.criteria import CONFIDENCE, criteria_of, read_criteria

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
    """A table of the headline metrics and one of the rest."""
    from kanna.terminal.tables import table

    rows = [
        [one.task, f"{len(one.records):,}", one.metric, shown(one.metric, one.value), *_floors(one)]
        for one in result.scores
    ]
    headings = (result.model, ">rows", "metric", ">value", ">constant answer", ">answer in prompt")
    console.print(table(headings, rows))
    for one in result.scores:
        rest = [f"{name} {shown(name, value)}" for name, value in one.metrics.items() if name != one.metric]
        console.print(f"{one.task}: {', '.join(rest)}")
        for note in one.notes:
            console.print(f"  note: {note}")


def render_comparison(console: "Console", result: "Comparison") -> None:
    """Scores side by side, what flipped, the worst examples, the verdict."""
    from kanna.terminal.tables import percent, size, table

    rows = [_row(one) for one in result.tasks]
    headings = ("task", ">rows", "metric", ">base", ">new", ">change", ">interval", ">allowed", "verdict")
    console.print(table((*headings, ">lost", ">gained", ">constant"), rows))
    kept = result.new.bytes / result.base.bytes
    console.print(
        f"weights: {size(result.base.bytes)} -> {size(result.new.bytes)} ({percent(kept)} of the base)"
    )
    if result.divergence is not None:
        apart = result.divergence
        console.print(
            f"next-token distributions: KL {apart.kl_mean:.4f} nats per token (99th percentile "
            f"{apart.kl_p99:.3f}), same first choice "
            f"{percent(apart.top1_agreement)} of {apart.tokens:,} tokens"
        )
    for one in result.tasks:
        _render_flips(console, one)
    if result.blame is not None:
        found = [[one.matrix, str(one.repaired), str(one.undone)] for one in result.blame[:10]]
        console.print(table(("put back alone", ">repairs", ">undoes"), found))
    for note in result.notes:
        console.print(f"note: {note}")
    status = result.status.upper() if result.status == "fail" else result.status
    console.print(f"verdict: {status}: {result.explanation}")


def _row(one: "TaskComparison") -> list[str]:
    metric, base, new = one.base.metric, one.base.value, one.new.value
    counts = (
        [str(one.lost), str(one.gained)]
        if one.base.records and one.base.records[0].right is not None
        else ["", ""]
    )
    constant = one.base.floors.get("constant")
    tail = [*counts, "" if constant is None else shown("acc", constant)]
    name = f"{one.base.task} (guard)" if one.guard else one.base.task
    head = [name, f"{len(one.base.records):,}", metric, shown(metric, base), shown(metric, new)]
    decision = one.decision
    if decision is None:
        return [*head, change(metric, new - base), "", "", "", *tail]
    low, high = decision.interval
    between = f"{change(metric, low)} to {change(metric, high)}"
    return [
        *head,
        change(metric, decision.difference),
        between,
        change(metric, decision.allowed),
        decision.status,
        *tail,
    ]


def _render_flips(console: "Console", one: "TaskComparison") -> None:
    from kanna.terminal.tables import table

    if not one.flips:
        return
    rows = [
        [str(flip.row), _short(flip.prompt), flip.expected.strip(), _short(flip.base), _short(flip.new)]
        for flip in one.flips
    ]
    title = f"{one.base.task}: {one.lost} lost, {one.gained} gained; the worst"
    console.print(table((">row", "prompt", "expected", "base", "new"), rows, title))


def _short(text: str, most: int = 48) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else "..." + line[-most:]


def _floors(one: "TaskScore") -> list[str]:
    found = [one.floors.get("constant"), one.floors.get("answer_in_prompt")]
    return ["" if value is None else shown("acc", value) for value in found]


def stops(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Backslash escapes in --stop mean what they mean in most languages."""
    if given is None:
        return None
    return tuple(one.replace("\\n", "\n").replace("\\t", "\t") for one in given)
