"""The verb of a step, built from its method: flags from the configuration, tasks, and how to run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kanna.methods import methods
from kanna.runs.method import Method, load
from kanna.terminal import asking
from kanna.terminal.flags import flags, given
from kanna.terminal.lazy import LazyCommand
from kanna.terminal.options import Device, Force, Model, Out
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from kanna.runs.runner import RunResult

Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Text like that of use: .jsonl rows or .txt.",
        rich_help_panel="Calibration",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel="Running")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done.", rich_help_panel="Running")]


def _carry_out(
    session: Session,
    *,
    model: Model,
    out: Out = None,
    task: asking.Tasks = None,
    max_drop: asking.MaxDrop = None,
    tolerance: asking.ToleranceFile = None,
    guard: asking.Guards = None,
    confidence: asking.Confidence = None,
    metric: asking.Metric = None,
    context: asking.Context = None,
    limit: asking.Limit = None,
    calibration: Calibration = None,
    force: Force = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "cpu",
    method: Method,
    settings: dict[str, Any],
) -> int:
    from kanna.runs.request import Call, Request
    from kanna.runs.runner import carry_out
    from kanna.runs.settings import parse
    from kanna.tasks.options import EvalOptions

    config = parse(method.load_config(), settings, f"see kanna {' '.join(method.words)} --help")
    request = Request(
        model,
        out,
        (Call(method, config),),
        calibration=calibration,
        criteria=asking.criteria_from(task, max_drop, tolerance, guard, confidence),
        options=EvalOptions(metric=metric, limit=limit, context=context, device=device),
        device=device,
        force=force,
        resume=resume,
        dry_run=dry_run,
    )
    with session.resumable(out), session.progress() as progress:
        result = carry_out(request, lambda plan: announce(session, plan, out), progress)
    return show(session, result)


def step_verb(method: Method) -> Callable[..., None]:
    """The function behind the verb of a step, with its flags as parameters."""
    config = method.load_config()
    own = flags(config)
    names = {parameter.name for parameter in own}

    def run(session: Session, **values: Any) -> int:
        settings = given(values, config)
        rest = {name: value for name, value in values.items() if name not in names}
        # A context of the step's own also says how much of a task is read.
        context = {"context": values["context"]} if "context" in names else {}
        return _carry_out(session, **rest, **context, method=method, settings=settings)

    run.__doc__ = f"{method.summary}\n\n{method.example}"
    kept = [
        parameter
        for parameter in inspect.signature(_carry_out, eval_str=True).parameters.values()
        if parameter.name not in (*names, "method", "settings")
        and (parameter.name != "calibration" or method.calibration)
    ]
    first, rest = kept[:3], kept[3:]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [first[0].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD), *first[1:], *own, *rest]
    )
    return verb(run)


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


def lazy_verbs() -> list[LazyCommand]:
    """The verbs of all methods, each loaded when it is run."""
    return [
        LazyCommand(method.words[0], method.group or method.summary, functools.partial(_real, method))
        for method in methods().values()
        if not method.hidden
    ]


def _real(method: Method) -> Any:
    """The command of a method: its step, or the group of its step and its further verbs."""
    if not method.commands:
        single = typer.Typer(add_completion=False)
        single.command(method.words[0])(step_verb(method))
        return typer.main.get_command(single)
    group: typer.Typer = load(method.commands)
    combined = typer.Typer(name=method.words[0], help=method.group, no_args_is_help=True)
    combined.command(method.words[-1])(step_verb(method))
    combined.registered_commands += group.registered_commands
    return typer.main.get_group(combined)
