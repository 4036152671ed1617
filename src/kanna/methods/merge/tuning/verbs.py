"""kanna merge sweep"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kanna.methods.merge.flags import Lax, MaxMemory, OutDtype, Recipe, Seed, size_of
from kanna.terminal import asking
from kanna.terminal.asking import Force, Out
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.merge.tuning.sweep import SweepResult
    from kanna.methods.merge.tuning.work import Work

_WHAT, _CHOICE, _RUN = "What is tried", "Choice", "Running"

ExpertTasks = Annotated[
    list[str],
    typer.Option(
        "--task",
        metavar="NAME=FILE",
        help="An expert, and rows with answers or choices that it knows but was not trained on.",
        rich_help_panel=_CHOICE,
    ),
]
OptionalTasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME=FILE",
        help="An expert, and rows with answers or choices that it knows but was not trained on; for each "
        "expert, but with --data-free.",
        rich_help_panel=_CHOICE,
    ),
]
Tests = Annotated[
    list[str] | None,
    typer.Option(
        "--test",
        metavar="NAME=FILE",
        help="Rows of their own for the final figure; all rows of --task then choose.",
        rich_help_panel=_CHOICE,
    ),
]
Share = Annotated[
    float,
    typer.Option("--calibration-share", help="Of a task's rows, for what chooses.", rich_help_panel=_CHOICE),
]
SplitSeed = Annotated[
    int, typer.Option("--split-seed", metavar="N", help="Of that split.", rich_help_panel=_CHOICE)
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="DROP",
        help="Allowed drop from each expert, on the test rows: 1% of its score, or 1pt.",
        rich_help_panel=_CHOICE,
    ),
]
Guard = Annotated[
    list[str] | None,
    typer.Option(
        "--guard",
        metavar="FILE=DROP",
        help="Text or rows on which no more may be lost beside the base: prose.txt=3%.",
        rich_help_panel=_CHOICE,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what it takes: evaluations, tokens, time.", rich_help_panel=_RUN),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=_RUN)]


Vary = Annotated[
    list[str],
    typer.Option(
        "--vary",
        metavar="WHAT=VALUES",
        help="A number of the recipe: lambda=0.3:1.2:0.1 (from, to, step), weight=0.5,1 of all models, "
        "or weight@NAME=0:1:0.1 of one. Twice for two numbers, of which every combination is tried.",
        rich_help_panel=_WHAT,
    ),
]
Measured = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="That gains are measured from, where the recipe names none.",
        rich_help_panel=_CHOICE,
    ),
]


@verb
def sweep(
    session: Session,
    recipe: Recipe,
    vary: Vary,
    task: ExpertTasks,
    evaluation: asking.Scoring,
    out: Out = None,
    test: Tests = None,
    base: Measured = None,
    calibration_share: Share = 0.2,
    split_seed: SplitSeed = 0,
    max_drop: MaxDrop = None,
    guard: Guard = None,
    out_dtype: OutDtype = None,
    max_memory: MaxMemory = "2G",
    seed: Seed = 0,
    lax: Lax = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> int:
    """Score merges over one or two numbers of a recipe, and write the best.

    kanna merge sweep recipe.yml --vary lambda=0.3:1.2:0.1 --task math=m.jsonl --task law=l.jsonl --out DIR
    """
    from kanna.methods.merge.tuning.sweep import merge_sweep

    with session.resumable(out), session.progress() as progress:
        done = merge_sweep(
            recipe,
            vary,
            task,
            out,
            tests=test or (),
            base=base,
            calibration_share=calibration_share,
            split_seed=split_seed,
            max_drop=max_drop,
            guards=guard or (),
            evaluation=evaluation,
            out_dtype=out_dtype,
            max_memory=size_of(max_memory),
            seed=seed,
            lax=lax,
            force=force,
            resume=resume,
            dry_run=dry_run,
            announce=lambda work: session.say(told(work)),
            progress=progress,
        )
    session.show(done.to_dict(), lambda console: _render(console, done))
    return 0 if done.passed else asking.VERDICT_FAILED


def told(work: Work) -> str:
    """What it takes, in one line."""
    from kanna.heard import duration

    if not work.evaluations:
        return f"no evaluations; about {duration(work.seconds)} on one core"
    return (
        f"{work.evaluations} evaluations of {work.rows} rows in all, {work.merges} merges; about "
        f"{work.tokens:,} tokens, {duration(work.seconds)} on one core"
    )


def _render(console: Console, done: SweepResult) -> None:
    from kanna.methods.merge.tuning.report import sweep_blocks
    from kanna.reporting.blocks import At, Chart
    from kanna.reporting.console import draw_block

    if done.sweep is None:
        console.print(told(done.work))
        console.print("nothing was computed")
        return
    for block in sweep_blocks(At("sweep", done.sweep.to_dict())):
        shown = block.table if isinstance(block, Chart) else block
        if shown is not None:
            draw_block(console, shown)
    if done.written is not None:
        console.print(f"written: {done.written.out}")
