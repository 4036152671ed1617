"""kanna merge plan | run | verify | analyze | sweep | hi | extract-lora"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.methods.merge.flags import (
    AsLora,
    JudgedTasks,
    KeepIntermediates,
    Lax,
    Load,
    LoraRank,
    MaxDrop,
    MaxMemory,
    OutDtype,
    Recipe,
    Resume,
    Seed,
    size_of,
)
from kanna.methods.merge.hi.verbs import analyze, hi
from kanna.methods.merge.tuning.verbs import sweep
from kanna.terminal import asking
from kanna.terminal.asking import Directory, Force
from kanna.terminal.folded import VerbCommand, VerbGroup
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.methods.merge.adapter_result import WrittenAdapter
    from kanna.methods.merge.plan import MergePlan
    from kanna.methods.merge.run import MergeResult
    from kanna.methods.merge.verify import MergeCheck
    from kanna.runs.probe import Verdict
    from kanna.tasks.verdict.comparison import Comparison

app = typer.Typer(
    cls=VerbGroup, help="Make one model out of several, by a recipe in mergekit's YAML.", no_args_is_help=True
)


@verb
def plan(
    session: Session,
    recipe: Recipe,
    out_dtype: OutDtype = None,
    max_memory: MaxMemory = "2G",
    seed: Seed = 0,
    lax: Lax = False,
    risk: Annotated[
        bool, typer.Option("--risk", help="Read a sample of the weights: how much do the models disagree?")
    ] = False,
) -> None:
    """What a recipe would do: models, what applies to which tensor, bytes, memory. Reads headers only.

    kanna merge plan recipe.yml
    """
    from kanna.methods.merge.run import merge_plan

    found = merge_plan(
        recipe, out_dtype=out_dtype, max_memory=size_of(max_memory), seed=seed, lax=lax, risk=risk
    )
    from kanna.methods.merge.plan_shown import render_plan

    session.show(found.to_dict(), lambda console: render_plan(console, found))


@verb
def run(
    session: Session,
    recipe: Recipe,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the result.")],
    out_dtype: OutDtype = None,
    max_memory: MaxMemory = "2G",
    seed: Seed = 0,
    lax: Lax = False,
    force: Force = False,
    resume: Resume = False,
    keep_intermediates: KeepIntermediates = None,
    load: Load = True,
    as_lora: AsLora = False,
    rank: LoraRank = None,
    task: JudgedTasks = None,
    max_drop: MaxDrop = None,
) -> int:
    """Merge models, chunk by chunk, and check what was written.

    kanna merge run recipe.yml --out DIR
    """
    from kanna.methods.merge.run import merge

    if as_lora:
        _refuse_with_adapters(
            {
                "--resume": resume,
                "--out-dtype": out_dtype,
                "--keep-intermediates": keep_intermediates,
                "--no-load": not load,
                "--task": task,
                "--max-drop": max_drop,
            }
        )
        return _run_as_lora(session, recipe, out, rank, size_of(max_memory), seed, lax, force)
    if rank is not None:
        raise InputError("--rank is of --as-lora", "leave it out, or give both")

    with session.resumable(out), session.progress() as progress:
        done = merge(
            recipe,
            out,
            out_dtype=out_dtype,
            max_memory=size_of(max_memory),
            seed=seed,
            lax=lax,
            force=force,
            resume=resume,
            keep_intermediates=keep_intermediates,
            load=load,
            tasks=task or (),
            max_drop=max_drop,
            announce=lambda found: _announce(session, found),
            progress=progress,
        )
    return _shown(session, done)


def _refuse_with_adapters(given: Mapping[str, object]) -> None:
    """What is of merged models, not of merged adapters."""
    if idle := [flag for flag, value in given.items() if value]:
        raise InputError(f"{', '.join(idle)} have no meaning with --as-lora", "leave them out")


def _shown(session: Session, done: MergeResult) -> int:
    """Show a merge, beside its experts where tasks were named."""
    session.show(done.to_dict(), lambda console: _render_run(console, done))
    return 0 if done.passed else asking.VERDICT_FAILED


def _run_as_lora(
    session: Session,
    recipe: Path,
    out: Path,
    rank: int | None,
    max_memory: int,
    seed: int,
    lax: bool,
    force: bool,
) -> int:
    from kanna.methods.merge.lora import merge_lora

    with session.progress() as progress:
        done = merge_lora(
            recipe, out, rank=rank, seed=seed, lax=lax, force=force, max_memory=max_memory, progress=progress
        )
    for warning in done.warnings:
        session.say(f"note: {warning}")
    session.show(done.to_dict(), lambda console: _render_adapter(console, done))
    return 0


def run_file(session: Session, file: Path, out: Path | None, force: bool, resume: bool, dry_run: bool) -> int:
    """`kanna run` of a file of this method."""
    from kanna.methods.merge.plan_shown import render_plan
    from kanna.methods.merge.run import merge, merge_plan

    if dry_run:
        found = merge_plan(file)
        session.show(found.to_dict(), lambda console: render_plan(console, found))
        return 0
    if out is None:
        raise InputError(f"{file} does not say where the result goes", "give --out DIR")
    with session.resumable(out), session.progress() as progress:
        done = merge(
            file,
            out,
            force=force,
            resume=resume,
            announce=lambda found: _announce(session, found),
            progress=progress,
        )
    return _shown(session, done)


@verb
def verify(
    session: Session,
    directory: Directory,
    max_memory: Annotated[
        str | None,
        typer.Option("--max-memory", metavar="SIZE", help="Load it only if that is enough: 900M, 2G."),
    ] = None,
) -> int:
    """Whether a merged model is what was written: digests, headers, finite values; and whether it loads.

    kanna merge verify DIR
    """
    from kanna.methods.merge.verify import merge_verify

    limit = None if max_memory is None else size_of(max_memory)
    found = merge_verify(directory, max_memory=limit)
    session.show(found.to_dict(), lambda console: _render_check(console, found))
    return 0 if found.passed else asking.VERDICT_FAILED


@verb
def extract_lora(
    session: Session,
    fine_tuned: Annotated[str, typer.Argument(metavar="FINE_TUNED", help="A fine-tuned model.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that it was made from.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the adapter.")],
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="R", help="Of each layer's factors, at most.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", metavar="SHARE", help="Of each squared difference that stays: 0.95."),
    ] = None,
    force: Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted extraction.")] = False,
) -> None:
    """Write what a fine-tuned model differs by from its base as a LoRA adapter.

    kanna merge extract-lora FINE_TUNED BASE --rank 64 --out DIR
    """
    from kanna.methods.merge.extract import extract_lora as extract

    with session.resumable(out), session.progress() as progress:
        done = extract(
            fine_tuned, base, out, rank=rank, energy=energy, force=force, resume=resume, progress=progress
        )
    session.show(done.to_dict(), lambda console: _render_adapter(console, done))


for command in (plan, run, verify, analyze, sweep, hi, extract_lora):
    app.command(cls=VerbCommand)(command)


def _announce(session: Session, found: MergePlan) -> None:
    from kanna.reporting.wording import size

    for warning in found.warnings:
        session.say(f"note: {warning}")
    read, written = size(found.bytes_read), size(found.bytes_written)
    session.say(f"{found.recipe.method} of {len(found.inputs.models)} models: {read} read, {written} written")


def _render_run(console: Console, done: MergeResult) -> None:
    from kanna.heard import duration
    from kanna.reporting.wording import percent, size

    figures = done.figures
    copied = f", {figures['tensors_copied']} copied" if figures["tensors_copied"] else ""
    console.print(f"{figures['tensors_merged']} tensors merged{copied}")
    if figures["kept_share"] is not None:
        console.print(f"differences kept: {percent(figures['kept_share'])}")
    if figures["rounding_loss"] is not None:
        console.print(f"rounding took {percent(figures['rounding_loss'])} of what merging changed")
    console.print(f"took {duration(done.run['seconds'])}, peak memory {size(done.run['peak_memory_bytes'])}")
    console.print(_said(done.verdict, done.note))
    for one in done.judged:
        console.print(f"\nbeside {one.name}, which knows the task:")
        asking.render_comparison(console, one.expert)
        if one.base is not None:
            for line in _gains(one.base):
                console.print(line)
    console.print(f"written: {done.out}")


def _render_check(console: Console, found: MergeCheck) -> None:
    console.print(f"a merge of {', '.join(found.inputs)}")
    console.print(f"{found.files} files have the recorded sha256; {found.tensors} tensors, all values finite")
    if found.unrecorded:
        console.print(f"not recorded: {', '.join(found.unrecorded)}")
    console.print(_said(found.verdict, found.note))


def _render_adapter(console: Console, done: WrittenAdapter) -> None:
    from kanna.reporting.wording import percent, size

    ranks, lost = done.ranks, done.lost
    whole = f", {len(done.saved)} modules saved whole" if done.saved else ""
    console.print(f"{len(ranks)} layers of rank {min(ranks.values())} to {max(ranks.values())}{whole}")
    worst = max(lost, key=lambda layer: lost[layer])
    if lost[worst]:
        console.print(f"of a layer's squared difference at most {percent(lost[worst])} is left out: {worst}")
    console.print(f"written: {done.out} ({size(done.bytes)})")


def _said(verdict: Verdict | None, note: str) -> str:
    if verdict is None:
        return note
    return "loaded: logits finite" if verdict.passed else f"verdict: FAIL: {verdict.reason}"


def _gains(beside: Comparison) -> list[str]:
    """What was gained beside the base, which may know nothing of a task: no verdict on it."""
    from kanna.tasks.metrics.shown import change, shown

    lines = []
    for task in beside.tasks:
        seen = f"{shown(task.metric, task.base_value)} -> {shown(task.metric, task.new_value)}"
        line = f"beside the base: {task.task}: {task.metric} {seen}"
        if task.decision is not None:
            low, high = (change(task.metric, end) for end in task.decision.interval)
            line += f", {change(task.metric, task.decision.difference)} ({low} to {high})"
        lines.append(line)
    return lines
