"""old"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal import asking
from kanna.terminal.options import Device, Force, Model, Out, Select
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.lowrank.plan import Plan
    from kanna.methods.lowrank.run import LowRankResult

_BUDGET, _HOW, _DATA, _RUN = "Which and how much", "How", "Calibration", "Running"


@verb
def lowrank(
    session: Session,
    model: Model,
    out: Out = None,
    keep: Annotated[
        float | None,
        typer.Option(help="Share of the selected matrices' parameters to keep.", rich_help_panel=_BUDGET),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="One rank for all instead of a budget.", rich_help_panel=_BUDGET)
    ] = None,
    select: Select = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers: '3,18,30', '4-', '-1'.", rich_help_panel=_BUDGET)
    ] = None,
    matrices: Annotated[
        str | None, typer.Option(help="Roles for --layers: 'all', 'q,k,v', 'mlp'.", rich_help_panel=_BUDGET)
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text like that of use: .jsonl rows or .txt.", rich_help_panel=_DATA
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Calibration tokens at most (32768).", rich_help_panel=_DATA)
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Length of calibration windows, and most tokens read on --task.", rich_help_panel=_DATA
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Windows computed at a time (8).", rich_help_panel=_DATA)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="anchored (below keep 0.5), whitened (above), plain, asvd, fwsvd.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            "--allocation",
            "--allocate",
            metavar="NAME",
            help="How ranks are spread: global (where gradients fit in memory) or uniform.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    outputs: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Output directions weighed by the loss gradient, or equal: gradient, equal.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Two factors (pair), or the smaller pivot.", rich_help_panel=_HOW),
    ] = None,
    align: Annotated[
        int | None, typer.Option(help="Ranks are multiples of it (8).", rich_help_panel=_HOW)
    ] = None,
    floor: Annotated[
        float | None, typer.Option(help="Least share of the uniform rank (0.5).", rich_help_panel=_HOW)
    ] = None,
    ridge: Annotated[
        float | None, typer.Option(help="Added to input statistics (0.001).", rich_help_panel=_HOW)
    ] = None,
    bias_correction: Annotated[
        bool | None,
        typer.Option(
            "--bias-correction/--no-bias-correction",
            help="Let biases take over the mean of what is lost; where there are biases.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    refine: Annotated[
        int | None, typer.Option(help="Optimiser steps per block afterwards (0).", rich_help_panel=_HOW)
    ] = None,
    task: asking.Tasks = None,
    max_drop: asking.MaxDrop = None,
    tolerance: asking.ToleranceFile = None,
    guard: asking.Guards = None,
    confidence: asking.Confidence = None,
    metric: asking.Metric = None,
    limit: asking.Limit = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn (0).", rich_help_panel=_RUN)] = None,
    force: Force = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=_RUN)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done.", rich_help_panel=_RUN)
    ] = False,
    device: Device = "cpu",
) -> int:
    """Replace weight matrices by low-rank factors; write a smaller model, reload it and check it.

    kanna lowrank MODEL --keep 0.8 --calibration text.jsonl --out DIR
    """
    from kanna.methods.lowrank.run import lowrank as replace
    from kanna.methods.lowrank.run import parse_config
    from kanna.tasks.evaluate import EvalOptions

    settings = {
        "keep": keep,
        "rank": rank,
        "select": _selection(select, layers, matrices),
        "method": method,
        "allocation": allocation,
        "outputs": outputs,
        "storage": storage,
        "align": align,
        "floor": floor,
        "ridge": ridge,
        "bias_correction": bias_correction,
        "refine": refine,
        "tokens": tokens,
        "context": context,
        "batch": batch,
        "seed": seed,
    }
    config = parse_config(settings)
    criteria = asking.criteria_from(task, max_drop, tolerance, guard, confidence)
    options = EvalOptions(metric=metric, limit=limit, context=context, device=device)
    with session.resumable(out), session.progress() as progress:
        result = replace(
            model,
            out,
            config,
            calibration=calibration,
            force=force,
            resume=resume,
            dry_run=dry_run,
            device=device,
            criteria=criteria,
            options=options,
            announce=lambda plan: announce(session, plan, out),
            progress=progress,
        )
    return show(session, result)


def announce(session: Session, plan: "Plan", out: Path | None) -> None:
    """What is about to be done and what it takes, on stderr."""
    from kanna.terminal.tables import size

    config, said = plan.config, plan.to_dict()
    budget = f"rank {config.rank}" if config.rank else f"{said['budget_parameters']:,} to keep"
    session.say(
        f"{len(plan.selected)} matrices, {plan.dense_parameters:,} parameters, {budget}; "
        f"method {config.method}, {config.allocation} ranks, outputs {config.outputs}, "
        f"{config.storage} storage"
    )
    free = "" if out is None else f" of {size(_free(out))} free"
    session.say(f"peak memory about {size(plan.memory)}")
    session.say(f"files of work about {size(plan.work_bytes)}{free}")
    for note in plan.notes:
        session.say(f"note: {note}")


def show(session: Session, result: "LowRankResult") -> int:
    """The result on stdout.

    Returns:
        The exit code.
    """
    if result.out is None:
        announce(session, result.plan, None)
        session.show(result.to_dict(), lambda console: _render_plan(console, result))
        return 0
    session.show(result.to_dict(), lambda console: _render(console, result))
    return 0 if result.passed else asking.VERDICT_FAILED


def _selection(select: str | None, layers: str | None, matrices: str | None) -> str | None:
    if layers is None and matrices is None:
        return select
    if select is not None:
        raise InputError("--select goes without --layers and --matrices", "say it all in --select")
    from kanna.models.selection import selection_from

    return selection_from(layers, matrices or "all")


def _free(out: Path) -> int:
    place = out.expanduser().absolute()
    existing = next(parent for parent in (place, *place.parents) if parent.is_dir())
    return shutil.disk_usage(existing).free


def _render_plan(console: "Console", result: "LowRankResult") -> None:
    from kanna.terminal.tables import table

    ranks = result.plan.ranks or {}
    rows = [
        [
            matrix.name,
            f"{matrix.out_features} x {matrix.in_features}",
            str(matrix.break_even_rank),
            "after the survey" if result.plan.ranks is None else str(ranks[matrix.name] or "dense"),
        ]
        for matrix in result.plan.selected
    ]
    console.print(table(("matrix", ">shape", ">break-even", ">rank"), rows))
    console.print("dry run: nothing was written")


def _render(console: "Console", result: "LowRankResult") -> None:
    from kanna.terminal.progress import duration
    from kanna.terminal.tables import percent, size, table

    figures = result.figures
    before, after = figures["model_bytes_before"], figures["model_bytes_after"]
    selected = result.plan.dense_parameters
    rows = [
        ["before", f"{selected:,}", size(before)],
        ["after", f"{round(selected * figures['keep_selected']):,}", size(after)],
        ["kept", percent(figures["keep_selected"]), percent(figures["keep_model_bytes"])],
    ]
    console.print(table(("", ">selected matrices (parameters)", ">whole model (bytes)"), rows))
    console.print(
        f"{figures['matrices_replaced']} of {figures['matrices_selected']} matrices replaced "
        f"in {duration(result.run['seconds'])}, peak memory {size(result.run['peak_memory_bytes'])}"
    )
    if result.comparison is None:
        console.print(f"verdict: {_verdict(result)}")
    else:
        console.print(f"written and read back: {_verdict(result)}")
        asking.render_comparison(console, result.comparison)
    console.print(f"written: {result.out}")


def _verdict(result: "LowRankResult") -> str:
    verdict = result.verdict
    if verdict is None:
        return "not checked"
    if not verdict.passed:
        return f"FAIL: {verdict.reason}"
    judged = "" if result.comparison is not None else "; not evaluated on a task"
    return f"pass: reloaded, logits finite{_deviation(verdict.deviation)}{judged}"


def _deviation(found: float | None) -> str:
    if found is None:
        return ""
    return f", block outputs {f'within {found:.1e} of' if found else 'equal to'} those of the run"
