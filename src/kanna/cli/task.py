"""kanna task new | check | split"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.asking import Force
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.tasks.data.check import CheckResult, Finding

app = typer.Typer(name="task", help="Make, check and split the data of a task.", no_args_is_help=True)
_BAD_INPUT = 2
_NAMED = 8
File = Annotated[Path, typer.Argument(metavar="FILE", help=".jsonl, .json, .csv, .tsv, .parquet or text.")]


@verb
def new(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New .jsonl or .csv file.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="choice, answer, paraphrases, instruction, messages, text, similarity or retrieval.",
        ),
    ] = "choice",
    force: Force = False,
) -> None:
    """Write a template to fill with your own rows."""
    from kanna.tasks.data.templates import new_task

    path = new_task(file, kind, force)
    result = {"schema_version": 1, "kind": "task-new", "file": str(path), "template": kind}
    session.show(
        result,
        lambda console: console.print(f"written: {path}\nput your rows in, then: kanna task check {path}"),
    )


@verb
def check(
    session: Session,
    file: File,
    model: Annotated[str | None, typer.Option(help="Compare lengths with what it reads.")] = None,
    tolerance: Annotated[
        str | None, typer.Option(metavar="DROP", help="Say how many rows 1% or 1pt needs.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the verdict.")] = 0.95,
    context: Annotated[int | None, typer.Option(min=2, help="Most tokens read at once.")] = None,
) -> int:
    """Look a task over: its rows, duplicates, classes, lengths, and whether it is large enough."""
    from kanna.tasks.data.check import check_task
    from kanna.tasks.verdict.tolerance import parse_tolerance

    tokenizer = None
    if context is not None and model is None:
        raise InputError("--context says nothing without a model", "add --model, whose tokens it counts")
    if model is not None:
        from kanna.checkpoint.reader import Checkpoint
        from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer

        checkpoint = Checkpoint.open(model)
        tokenizer = load_tokenizer(checkpoint.directory)
        context = context_length(checkpoint.config, tokenizer, context)
    allowed = None if tolerance is None else parse_tolerance(tolerance)
    result = check_task(file, tolerance=allowed, confidence=confidence, tokenizer=tokenizer, context=context)
    session.show(result.to_dict(), lambda console: _render(console, result, tolerance))
    return 0 if result.passed else _BAD_INPUT


@verb
def split(
    session: Session,
    file: File,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the two parts.")],
    share: Annotated[float, typer.Option(help="Share of the validation part.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the drawing.")] = 0,
    first: Annotated[
        bool, typer.Option("--legacy-first", help="The first rows, as the code of papers has it.")
    ] = False,
    force: Force = False,
) -> None:
    """Part a task into validation and test so that no fact is on both sides."""
    from kanna.tasks.data.split import split_task

    result = split_task(file, out, share=share, seed=seed, first=first, force=force)
    session.show(
        result.to_dict(),
        lambda console: console.print(
            f"{result.rows[0]:,} rows: {result.validation}\n{result.rows[1]:,} rows: {result.test}\n"
            f"{result.units:,} units (groups and near-duplicates stay together)"
        ),
    )


for _name, _command in {"new": new, "check": check, "split": split}.items():
    app.command(_name)(_command)


def _render(console: "Console", result: "CheckResult", tolerance: str | None) -> None:
    from kanna.reporting.console import table
    from kanna.tasks.data.check import ASSUMED_RIGHT

    kind = f" of kind {result.kind}" if result.kind else ""
    units = f" in {result.groups:,} groups" if 0 < result.groups < result.rows else ""
    console.print(f"{result.file}: {result.rows:,} {'row' if result.rows == 1 else 'rows'}{kind}{units}")
    for finding in result.findings:
        console.print(f"{finding.level}: {finding.code}: {finding.message}{_places(finding)}")
    if result.needed:
        rows = [[flips, "none" if count is None else f"{count:,}"] for flips, count in result.needed.items()]
        console.print(
            f"rows that {tolerance} needs, to pass a model that is as good four times of five "
            f"(if {100 * ASSUMED_RIGHT:g} % of its answers are right):"
        )
        console.print(table(("answers that change", ">rows"), rows))
    console.print(result.conclusion)


def _places(finding: "Finding") -> str:
    """A few rows, and which ones they repeat."""
    if not finding.rows:
        return ""
    if finding.like:
        named = [f"{row} like {other}" for row, other in zip(finding.rows, finding.like, strict=True)]
    else:
        named = [str(row) for row in finding.rows]
    more = ", ..." if len(named) > _NAMED else ""
    return f" ({'row' if len(named) == 1 else 'rows'} {', '.join(named[:_NAMED])}{more})"
