"""kanna laser apply | search | compose | analyze | restore"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kanna.errors import InputError
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.search_config import SearchOptions
from kanna.result import replace
from kanna.terminal import asking
from kanna.terminal.asking import Directory, Force, Model, Out
from kanna.terminal.early import check_out, check_paths
from kanna.terminal.flags import Only
from kanna.terminal.folded import VerbCommand, VerbGroup
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.laser.run import LaserResult

app = typer.Typer(
    cls=VerbGroup,
)
_WHAT, _HOW, _RUN = "What is tried", "Search", "Running"

Task = Annotated[
    str, typer.Option("--task", metavar="FILE", help="Rows with answers or choices.", rich_help_panel=_WHAT)
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=_RUN)]
NewDirectory = Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the result.")]


@verb
def search(
    session: Session,
    model: Model,
    task: Task,
    options: SearchOptions,
    budget: Budget,
    config: Annotated[LaserConfig, Only(("factored", "keep_originals", "seed"))],
    judging: asking.ToleranceFile,
    evaluation: asking.Scoring,
    out: Out = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Every candidate on every row.", rich_help_panel=_HOW)
    ] = False,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Of an exhaustive search.", rich_help_panel=_HOW)
    ] = None,
    resume: Resume = False,
    force: Force = False,
) -> int:
    """Find the rank reduction of one matrix that makes a model better on a task.

    kanna laser search MODEL --task facts.jsonl --out DIR
    """
    if max_minutes is not None and not exhaustive:
        raise InputError("--max-minutes limits an exhaustive search", "add --exhaustive, or leave it out")
    check_paths([model], [task])
    check_out(out, force or resume)
    criteria = judging.criteria()
    from kanna.methods.laser.searching import laser_search

    seconds = None if max_minutes is None else 60 * max_minutes
    if exhaustive:
        budget = replace(budget, fast=None, max_seconds=seconds)
    with session.resumable(out), session.progress() as progress:
        result = laser_search(
            model,
            task,
            out,
            replace(options, budget=budget),
            evaluation=evaluation,
            config=config,
            criteria=criteria,
            force=force,
            resume=resume,
            progress=progress,
        )
    session.show(result.to_dict(), lambda console: _render(console, result.found, result.applied))
    return 0 if result.passed else asking.VERDICT_FAILED


@verb
def compose(
    session: Session,
    model: Model,
    task: Task,
    search_result: Annotated[
        Path,
        typer.Option("--from", metavar="DIR", help="Output of kanna laser search.", rich_help_panel=_WHAT),
    ],
    out: NewDirectory,
    options: Annotated[SearchOptions, Only(("max_ppl_rise", "text", "test"))],
    config: Annotated[LaserConfig, Only(("factored", "keep_originals"))],
    judging: asking.ToleranceFile,
    evaluation: asking.Scoring,
    max_steps: Annotated[int, typer.Option(min=1, help="Steps tried.", rich_help_panel=_HOW)] = 10,
    blocks: Annotated[
        int, typer.Option(min=1, help="Only edits of so many row blocks.", rich_help_panel=_WHAT)
    ] = 1,
    resume: Resume = False,
    force: Force = False,
) -> int:
    """Put edits of a search together, the last layers first; what makes it worse is rejected.

    kanna laser compose MODEL --task facts.jsonl --from SEARCH --out DIR
    """
    check_paths([model], [task])
    check_out(out, force or resume)
    criteria = judging.criteria()
    from kanna.methods.laser.composing import laser_compose

    with session.resumable(out), session.progress() as progress:
        result = laser_compose(
            model,
            task,
            search_result,
            out,
            max_steps=max_steps,
            blocks=blocks,
            text=options.text,
            max_ppl_rise=options.max_ppl_rise,
            test=options.test,
            evaluation=evaluation,
            config=config,
            criteria=criteria,
            force=force,
            resume=resume,
            progress=progress,
        )
    session.show(result.to_dict(), lambda console: _render(console, result.found, result.applied))
    return 0 if result.passed else asking.VERDICT_FAILED


@verb
def analyze(
    session: Session,
    model: Model,
    task: Task,
    config: Annotated[LaserConfig, Only(("edits",))],
    options: Annotated[SearchOptions, Only(("by", "text"))],
    evaluation: asking.Scoring,
    examples: Annotated[int, typer.Option(min=0, help="Rows shown.")] = 20,
    samples: Annotated[int, typer.Option(min=0, help="Prompts continued freely; 0 for none.")] = 16,
    out: asking.Results = None,
    force: Force = False,
) -> None:
    """What kept and removed components answer, to which facts, and what free text becomes.

    kanna laser analyze MODEL --task facts.jsonl --edit mlp_in:27:0.01 --by frequency
    """
    check_paths([model], [task])
    from kanna.methods.laser.analyze import laser_analyze
    from kanna.runs.results import check_free, write_result

    check_free(out, "laser-analysis", model, force)
    with session.progress() as progress:
        result = laser_analyze(
            model,
            task,
            config.edits,
            by=options.by,
            text=options.text,
            examples=examples,
            samples=samples,
            evaluation=evaluation,
            progress=progress,
        )
    write_result(out, "laser-analysis", model, result.to_dict(), force)
    session.show(result.to_dict(), lambda console: _render(console, result))


@verb
def restore(
    session: Session,
    directory: Directory,
    out: NewDirectory,
    stage: Annotated[
        int | None, typer.Option(min=0, help="Of a composed model: so many edits instead of none.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The model it was made from.")] = None,
    force: Force = False,
) -> None:
    """Write the model as it was before its edits, bit for bit; or a stage of a composed one."""
    check_paths([directory])
    from kanna.methods.laser.composing import restore_stage
    from kanna.methods.laser.restore import restore as restore_model

    with session.progress() as progress:
        if stage is None:
            path = restore_model(directory, out, base=base, force=force, progress=progress)
        else:
            result = restore_stage(directory, stage, out, base=base, force=force, progress=progress)
            path = result.out or out
    record = {"schema_version": 1, "kind": "laser-restore", "out": str(path), "stage": stage}
    session.show(record, lambda console: console.print(f"written: {path}"))


for command in (search, compose, analyze, restore):
    app.command(cls=VerbCommand)(command)


def _render(console: "Console", found: Any, applied: "LaserResult | None" = None) -> None:
    """What a page shows of it; then how the model that was written fares."""
    from kanna.methods.laser.report import VIEWS
    from kanna.reporting.blocks import At
    from kanna.reporting.console import draw
    from kanna.reporting.views import Result
    from kanna.terminal.results import render_end

    view = next(view for view in VIEWS if view.kind == found.kind)
    _, sections = view.draw([Result(At(found.model.name, found.to_dict()))])
    for section in sections:
        draw(console, section)
    if applied is not None:
        render_end(console, applied)
