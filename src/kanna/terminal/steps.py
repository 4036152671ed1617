"""A run of steps on the command line: what is about to be done, doing it, and the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kanna.terminal import asking
from kanna.terminal.session import Session

if TYPE_CHECKING:
    from kanna.runs.request import Request
    from kanna.runs.runner import RunResult


def carried_out(session: Session, request: Request) -> int:
    """Carry a request out, with its plan and its progress on stderr.

    Returns:
        The exit code.
    """
    from kanna.runs.runner import carry_out

    out = request.out
    with session.resumable(out), session.progress() as progress:
        result = carry_out(request, lambda plan: announce(session, plan, out), progress)
    return show(session, result)


def announce(session: Session, plan: Any, out: str | Path | None) -> None:
    """What is about to be done and what it takes, on stderr."""
    from kanna.reporting.wording import size
    from kanna.runs.places import free_bytes

    for line in plan.lines():
        session.say(line)
    if plan.work_bytes:
        free = "" if out is None else f" of {size(free_bytes(Path(out)))} free"
        session.say(f"files of work about {size(plan.work_bytes)}{free}")
    for note in plan.notes:
        session.say(f"note: {note}")


def show(session: Session, result: RunResult) -> int:
    """The result on stdout.

    Returns:
        The exit code.
    """
    from kanna.terminal.results import render_plans, render_run

    if result.out is None:
        for step in result.steps:
            for line in step.plan.lines() if step.plan is not None else ():
                session.say(line)
        session.show(result.to_dict(), lambda console: render_plans(console, result))
        return 0
    session.show(result.to_dict(), lambda console: render_run(console, result))
    return 0 if result.passed else asking.VERDICT_FAILED
