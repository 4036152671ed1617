"""kanna merge hi"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.methods.merge.hi.config import HiOptions
from kanna.methods.merge.tuning.verbs import DryRun, ExpertTasks, MaxDrop, Resume, Tests, told
from kanna.terminal import asking
from kanna.terminal.asking import Force
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.merge.hi.run import HiResult

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
    task: ExpertTasks,
    options: HiOptions,
    evaluation: asking.Scoring,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New directory for the result.")
    ] = None,
    test: Tests = None,
    max_drop: MaxDrop = None,
    out_dtype: Annotated[
        str | None,
        typer.Option("--out-dtype", metavar="DTYPE", help="Of the output: bfloat16.", rich_help_panel=_RUN),
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> int:
    """Merge experts by Hi-Merging: prune and scale each, then resolve conflicts block by block.

    kanna merge hi BASE --expert math=DIR --expert law=DIR --task math=m.jsonl --task law=l.jsonl --out DIR
    """
    from kanna.methods.merge.hi.run import merge_hi

    with session.resumable(out), session.progress() as progress:
        done = merge_hi(
            base,
            expert,
            task,
            out,
            options,
            tests=test or (),
            max_drop=max_drop,
            evaluation=evaluation,
            out_dtype=out_dtype,
            force=force,
            resume=resume,
            dry_run=dry_run,
            announce=lambda work: session.say(f"at most {told(work)}"),
            progress=progress,
        )
    session.show(done.to_dict(), lambda console: _render(console, done))
    return 0 if done.passed else asking.VERDICT_FAILED


def _render(console: Console, done: HiResult) -> None:
    from kanna.methods.merge.hi.report import hi_blocks
    from kanna.reporting.blocks import At, Chart
    from kanna.reporting.console import draw_block

    if done.outcome is None or done.written is None:
        console.print(f"at most {told(done.work)}")
        console.print("nothing was computed")
        return
    for block in hi_blocks(At("hi", done.outcome.to_dict())):
        if not isinstance(block, Chart):
            draw_block(console, block)
    console.print(f"written: {done.written.out}")
