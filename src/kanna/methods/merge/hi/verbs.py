"""kanna merge hi | analyze"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kanna.methods.merge.flags import OutDtype, Recipe
from kanna.methods.merge.hi.config import HiOptions
from kanna.methods.merge.tuning.verbs import DryRun, Guard, MaxDrop, OptionalTasks, Resume, Tests, told
from kanna.terminal import asking
from kanna.terminal.asking import Force, Out
from kanna.terminal.flags import Only
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.merge.hi.analyze import AnalysisResult
    from kanna.methods.merge.hi.run import HiResult
    from kanna.methods.merge.tuning.work import Work

_WHAT, _RUN = "What is merged", "Running"


@verb
def hi(
    session: Session,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that all experts were made from.")],
    expert: Annotated[
        list[str],
        typer.Option(
            "--expert",
            metavar="NAME=MODEL",
            help="A fine-tune of it, or BASE+ADAPTER; once for each.",
            rich_help_panel=_WHAT,
        ),
    ],
    options: HiOptions,
    evaluation: asking.Scoring,
    task: OptionalTasks = None,
    out: Out = None,
    test: Tests = None,
    max_drop: MaxDrop = None,
    guard: Guard = None,
    out_dtype: OutDtype = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> int:
    """Merge experts by Hi-Merging: sum them, and resolve conflicts block by block (--stages).

    kanna merge hi BASE --expert math=DIR --expert law=DIR --task math=m.jsonl --task law=l.jsonl --out DIR
    """
    from kanna.methods.merge.hi.run import merge_hi

    with session.resumable(out), session.progress() as progress:
        done = merge_hi(
            base,
            expert,
            task or (),
            out,
            options,
            tests=test or (),
            max_drop=max_drop,
            guards=guard or (),
            evaluation=evaluation,
            out_dtype=out_dtype,
            force=force,
            resume=resume,
            dry_run=dry_run,
            announce=lambda work: session.say(_most(work)),
            progress=progress,
        )
    session.show(done.to_dict(), lambda console: _render(console, done))
    return 0 if done.passed else asking.VERDICT_FAILED


def _most(work: Work) -> str:
    return f"at most {told(work)}" if work.evaluations else told(work)


def _render(console: Console, done: HiResult) -> None:
    from kanna.methods.merge.hi.report import hi_blocks
    from kanna.reporting.blocks import At, Chart
    from kanna.reporting.console import draw_block

    if done.outcome is None or done.written is None:
        console.print(_most(done.work))
        console.print("nothing was computed")
        return
    for block in hi_blocks(At("hi", done.outcome.to_dict())):
        if not isinstance(block, Chart):
            draw_block(console, block)
    console.print(f"written: {done.written.out}")


@verb
def analyze(
    session: Session,
    recipe: Recipe,
    evaluation: asking.Scoring,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME=FILE",
            help="An expert, and rows that it knows: also say what each block gives it.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="That gains are measured from, if the recipe has none."),
    ] = None,
    options: Annotated[HiOptions, Only(("group", "tau", "share", "split_seed"))] = HiOptions(),  # noqa: B008
    out: asking.Results = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Where models of a recipe disagree, by layer; with tasks, what blocks give them and where they conflict.

    kanna merge analyze recipe.yml --task math=m.jsonl --task law=l.jsonl
    """
    from kanna.methods.merge.hi.analyze import merge_analyze, place_of_work

    work = None if out is None else place_of_work(out, recipe)
    with session.resumable(work), session.progress() as progress:
        found = merge_analyze(
            recipe,
            task or (),
            base=base,
            group=options.group,
            tau=options.tau,
            calibration_share=options.share,
            split_seed=options.split_seed,
            evaluation=evaluation,
            out=out,
            force=force,
            resume=resume,
            dry_run=dry_run,
            announce=lambda work: session.say(told(work)),
            progress=progress,
        )
    session.show(found.to_dict(), lambda console: _render_analysis(console, found))


def _render_analysis(console: Console, found: AnalysisResult) -> None:
    from kanna.methods.merge.report import analysed
    from kanna.reporting.blocks import At, Chart
    from kanna.reporting.console import draw_block

    if found.analysis is None:
        console.print(told(found.work))
        console.print("nothing was computed")
        return
    for block in analysed(At("analysis", found.analysis.to_dict())):
        if not isinstance(block, Chart):
            draw_block(console, block)
