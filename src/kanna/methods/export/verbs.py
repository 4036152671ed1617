"""kanna export"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.methods.export.config import ExportConfig, ExportOptions
from kanna.tasks.options import EvalOptions
from kanna.terminal import asking
from kanna.terminal.asking import Force, Model, Out
from kanna.terminal.early import check_out, check_paths
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.export.quantized import Exported
    from kanna.runs.criteria import Criteria

_RUN = "Running"


@verb
def export(
    session: Session,
    model: Model,
    options: ExportOptions,
    judging: asking.Judging,
    evaluation: asking.Scoring,
    out: Out = None,
    force: Force = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=_RUN)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done.", rich_help_panel=_RUN)
    ] = False,
) -> int:
    """Write a compressed model for tools that do not know kanna.

    kanna export DIR --format dense --out DENSE
    """
    check_paths([model], judging.task)
    check_out(out, force or resume or dry_run, needed=not dry_run)
    criteria = judging.criteria()
    from kanna.checkpoint.applied import ACTIVE

    scales = ACTIVE if options.scales is None else options.scales
    place = _Place(model, out, scales, force, dry_run)
    if options.format == "dense":
        if options.check:
            raise InputError("--format dense is always reloaded and checked", "leave out --check")
        return _dense(session, place, criteria, evaluation, resume)
    if criteria is not None:
        raise InputError(
            f"{options.format} is for other programs, which kanna does not judge on tasks",
            "use --check here, and --task with --format dense or on the model itself",
        )
    if resume:
        raise InputError(f"an export to {options.format} is short, and not resumed", "leave out --resume")
    return _quantized(session, place, options)


@dataclass(frozen=True)
class _Place:
    """What is read and where it goes, as the command line says."""

    model: str
    out: Path | None
    scales: str
    force: bool
    dry_run: bool


def _dense(
    session: Session, place: _Place, criteria: "Criteria | None", evaluation: EvalOptions, resume: bool
) -> int:
    """A step like others: it is resumed and judged."""
    from kanna.methods.export import METHOD
    from kanna.runs.request import Call, Request
    from kanna.terminal.steps import carried_out

    request = Request(
        place.model,
        place.out,
        (Call(METHOD, ExportConfig(format="dense")),),
        criteria=criteria,
        options=evaluation,
        force=place.force,
        resume=resume,
        dry_run=place.dry_run,
        scales=place.scales,
    )
    return carried_out(session, request)


def _quantized(session: Session, place: _Place, options: ExportOptions) -> int:
    from kanna.methods.export.quantized import export_quantized

    with session.progress() as progress:
        done = export_quantized(
            place.model,
            place.out,
            options.format,
            scales=place.scales,
            check=options.check,
            force=place.force,
            dry_run=place.dry_run,
            progress=progress,
        )
    session.show(done.to_dict(), lambda console: _render(console, done))
    return 0 if done.passed else asking.VERDICT_FAILED


def _render(console: "Console", done: "Exported") -> None:
    from kanna.reporting.wording import size

    for line in done.lines():
        console.print(line)
    console.print(f"weights: {size(done.bytes)}")
    console.print("dry run: nothing was written" if done.out is None else f"written: {done.out}")
