"""kanna task new | check | split"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.asking import Force
from kanna.terminal.completing import one_of
from kanna.terminal.folded import VerbCommand, VerbGroup
from kanna.terminal.literal import unescaped
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from kanna.tasks.data.check import CheckResult, Finding
    from kanna.tasks.data.mapping import Made

app = typer.Typer(
    cls=VerbGroup, name="task", help="Make, check and split the data of a task.", no_args_is_help=True
)
_KINDS = ("choice", "answer", "paraphrases", "instruction", "messages", "text", "similarity", "retrieval")
_BAD_INPUT = 2
_NAMED = 8
_SHOWN = 70  # of a prompt, at either end
File = Annotated[Path, typer.Argument(metavar="FILE", help=".jsonl, .json, .csv, .tsv, .parquet or text.")]


@verb
def new(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New .jsonl or .csv file.")],
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="choice, answer, paraphrases, instruction, messages, text, similarity or retrieval.",
            autocompletion=one_of(_KINDS),
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="TABLE", help="Your own table: .csv, .tsv, .xlsx, .jsonl, .parquet."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=r"What is asked; {Column} stands for a cell, \n for a new line."),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of the right choice.")] = None,
    answer: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of the right answer.")] = None,
    choices: Annotated[
        str | None, typer.Option(metavar="'A;B;C'", help="To choose from; by default all labels.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of what rows about one fact share.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(metavar="NAME", help="Of the table (utf-8).")] = None,
    sheet: Annotated[str | None, typer.Option(metavar="NAME", help="Of an Excel file (the first).")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the rows that are shown.")] = 0,
    force: Force = False,
) -> None:
    """Write a template to fill with your own rows, or make a task out of a table.

    kanna task new app.jsonl --from tickets.csv --prompt 'Ticket: {Message}\\nCategory:' --label Category
    """
    from kanna.tasks.data.templates import new_task

    beside = {"--prompt": prompt, "--label": label, "--answer": answer, "--choices": choices,
              "--group": group, "--encoding": encoding, "--sheet": sheet}  # fmt: skip
    if source is not None:
        _from_table(session, file, kind, source, beside, seed, force)
        return
    alone = next((name for name, value in beside.items() if value is not None), None)
    if alone is not None:
        raise InputError(f"{alone} says nothing without a table", "add --from TABLE")
    kind = kind or "choice"
    path = new_task(file, kind, force)
    result = {"schema_version": 1, "kind": "task-new", "file": str(path), "template": kind}
    session.show(
        result,
        lambda console: console.print(f"written: {path}\nput your rows in, then: kanna task check {path}"),
    )


def _from_table(
    session: Session,
    file: Path,
    kind: str | None,
    source: Path,
    given: "Mapping[str, str | None]",
    seed: int,
    force: bool,
) -> None:
    from kanna.tasks.data.encodings import UTF_8
    from kanna.tasks.data.mapping import Columns, rows_from, suggested
    from kanna.tasks.data.sheets import read_sheet
    from kanna.tasks.data.templates import write_rows

    if kind is not None:
        raise InputError("--kind is of a template, and --from of a table", "leave one out")
    encoding, sheet = given["--encoding"] or UTF_8, given["--sheet"]
    prompt = given["--prompt"]
    if prompt is None:
        table = read_sheet(source, encoding=encoding, sheet=sheet)
        raise InputError(
            f"what is asked of {source.name} is missing; its columns: {', '.join(table.columns)}",
            f"say it, for example: {suggested(source, table)}"
            if len(table.columns) > 1
            else "there must be a column of what is right, too",
        )
    choices = tuple(choice.strip() for choice in (given["--choices"] or "").split(";") if choice.strip())
    columns = Columns(unescaped(prompt), given["--label"], given["--answer"], choices, given["--group"])
    made = rows_from(source, columns, encoding=encoding, sheet=sheet)
    path = write_rows(file, made.rows, force)
    result = {
        "schema_version": 1,
        "kind": "task-new",
        "file": str(path),
        "from": str(source),
        "rows": len(made.rows),
        "choices": list(made.choices),
        "left_out": list(made.left_out),
        "notes": list(made.notes),
        "sample": list(made.sample(seed)),
    }
    session.show(result, lambda console: _render_made(console, path, made, seed))


def _render_made(console: "Console", path: Path, made: "Made", seed: int) -> None:
    console.print(f"written: {path}: {len(made.rows):,} {'row' if len(made.rows) == 1 else 'rows'}")
    if made.choices:
        console.print(f"choices: {', '.join(made.choices)}")
    if made.left_out:
        some = ", ".join(made.left_out[:_NAMED]) + (", ..." if len(made.left_out) > _NAMED else "")
        console.print(f"left out, with nothing asked or nothing right: {len(made.left_out):,} ({some})")
    for note in made.notes:
        console.print(f"note: {note}")
    console.print("a few of them, drawn at random:")
    for row in made.sample(seed):
        asked = json.dumps(row["prompt"], ensure_ascii=False)[1:-1]
        console.print(f"  {_both_ends(asked)} -> {row.get('label', row.get('answer'))}", markup=False)
    console.print(f"next: kanna task check {path}")


def _both_ends(text: str) -> str:
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} ... {text[-_SHOWN:]}"


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
    app.command(_name, cls=VerbCommand)(_command)


def _render(console: "Console", result: "CheckResult", tolerance: str | None) -> None:
    kind = f" of kind {result.kind}" if result.kind else ""
    units = f" in {result.groups:,} groups" if 0 < result.groups < result.rows else ""
    console.print(f"{result.file}: {result.rows:,} {'row' if result.rows == 1 else 'rows'}{kind}{units}")
    for finding in result.findings:
        console.print(f"{finding.level}: {finding.code}: {finding.message}{_places(finding)}")
    if result.promised:
        _render_sizes(console, result, tolerance)
    console.print(result.conclusion)


def _render_sizes(console: "Console", result: "CheckResult", tolerance: str | None) -> None:
    """What so many rows can promise, and how many a tolerance needs."""
    from kanna.reporting.console import table
    from kanna.tasks.data.check import ASSUMED_RIGHT

    units = (
        f"{result.groups:,} {'row' if result.groups == result.rows else 'group'}{'s' * (result.groups != 1)}"
    )
    columns = ["answers that change", f">drop that {units} rule out"]
    rows = [[flips, f"{100 * drop:.2f} pt"] for flips, drop in result.promised.items()]
    console.print("if the new model is as good as its base, and as many answers change each way:")
    if result.needed:
        columns.append(f">rows that {tolerance} needs")
        for row, count in zip(rows, result.needed.values(), strict=True):
            row.append("none" if count is None else f"{count:,}")
    console.print(table(tuple(columns), rows))
    if result.needed:
        console.print(
            "rows needed: to pass four times of five, if "
            f"{100 * ASSUMED_RIGHT:g} % of the base's answers are right"
        )


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
