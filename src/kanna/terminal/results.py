"""What a run has done, drawn on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kanna.heard import duration
from kanna.reporting.console import draw_block
from kanna.reporting.wording import percent, size
from kanna.terminal import asking

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.probe import Verdict
    from kanna.runs.runner import RunResult, StepResult


def render_plans(console: Console, result: RunResult) -> None:
    """What every step of a dry run would do, as far as it is known."""
    for number, step in enumerate(result.steps, 1):
        _heading(console, result, number, step)
        if step.plan is None:
            console.print("planned when the steps before it have run, since it depends on what they leave")
            continue
        for block in step.plan.tables():
            draw_block(console, block)
        for note in step.plan.notes:
            console.print(f"note: {note}")
    if len(result.steps) > 1:
        known = [step.plan for step in result.steps if step.plan is not None]
        memory, work = max(plan.memory for plan in known), max(plan.work_bytes for plan in known)
        console.print(f"peak of the known steps: memory about {size(memory)}, files of work {size(work)}")
    console.print("dry run: nothing was written")


def render_run(console: Console, result: RunResult) -> None:
    """Each step with its figures, then how the run ended."""
    for number, step in enumerate(result.steps, 1):
        _heading(console, result, number, step)
        _render_step(console, step)
    if result.run:
        took, peak = duration(result.run["seconds"]), size(result.run["peak_memory_bytes"])
        console.print(f"took {took}, peak memory {peak}")
        if cache := result.run.get("cache"):
            gone = f", {size(cache['removed_bytes'])} removed" if cache["removed_bytes"] else ""
            console.print(
                f"left in the cache: {size(cache['bytes'])} of at most {size(cache['limit_bytes'])}{gone} "
                "(kanna cache)"
            )
    render_end(console, result)


def render_end(console: Console, result: RunResult) -> None:
    """The verdict, and where the model is."""
    verdict = result.verdict
    if verdict is not None and not verdict.passed:
        console.print(f"verdict: FAIL: {verdict.reason}")
    elif result.comparison is None:
        console.print(f"written and read back; {_unjudged(result)}: {_read_back(verdict)}")
    else:
        console.print(f"written and read back: {_read_back(verdict)}")
    if result.comparison is not None:
        asking.render_comparison(console, result.comparison)
    console.print(f"written: {result.out}")


def _heading(console: Console, result: RunResult, number: int, step: StepResult) -> None:
    if len(result.steps) > 1:
        console.print(f"step {number} of {len(result.steps)}: {step.method}")


def _render_step(console: Console, step: StepResult) -> None:
    figures = step.figures
    before, after = size(figures["model_bytes_before"]), size(figures["model_bytes_after"])
    for block in () if step.description is None else step.description.console:
        draw_block(console, block)
    if "keep_model_bytes" in figures:  # else it is added to, and none of its weights is written
        line = f"whole model: {before} -> {after} of weights ({percent(figures['keep_model_bytes'])})"
        if "keep_original_bytes" in figures:
            line += f", {percent(figures['keep_original_bytes'])} of the original base"
        console.print(line)
    for sentence in () if step.description is None else step.description.lines:
        console.print(sentence)


def _unjudged(result: RunResult) -> str:
    """That nobody asked tasks, or that there was nothing to ask."""
    plans = [step.plan for step in result.steps]
    last = plans[-1]
    if last is not None and all(plan is not None and plan.changes_nothing for plan in plans):
        return f"{last.unchanged}: nothing to judge"
    return "not judged"


def _read_back(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not checked"
    if verdict.deviation is None:
        return "reloaded, logits finite"
    near = f"within {verdict.deviation:.1e} of" if verdict.deviation else "equal to"
    return f"reloaded, logits finite, block outputs {near} those of the run"
