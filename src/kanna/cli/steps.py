"""The verb of a step, built from its method: flags from the configuration, tasks, and how to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from kanna.configuration import Configuration
from kanna.errors import InputError
from kanna.runs.method import Method, load
from kanna.terminal import asking
from kanna.terminal.asking import Force, Model, Out
from kanna.terminal.early import check_out, check_paths
from kanna.terminal.folded import VerbCommand, VerbGroup
from kanna.terminal.lazy import command, command_at
from kanna.terminal.session import Session, verb
from kanna.terminal.steps import carried_out

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


def step_verb(method: Method) -> Callable[..., None]:
    """The function behind the verb of a step, with its flags as parameters."""

    def run(
        session: Session,
        model: Model,
        config: BaseModel,
        judging: asking.Judging,
        evaluation: asking.Scoring,
        out: Out = None,
        calibration: Calibration = None,
        force: Force = False,
        resume: Resume = False,
        dry_run: DryRun = False,
    ) -> int:
        _check_required(method, config)
        check_paths([model], [*judging.task, calibration])
        check_out(out, force or resume or dry_run, not dry_run and method.folder_inside(config) is None)
        criteria = judging.criteria()
        evaluation.check_metric(has_task=criteria is not None)
        if isinstance(config, Configuration):
            config.check_given(has_text=calibration is not None)
        from kanna.runs.request import Call, asked

        request = asked(
            model,
            out,
            (Call(method, config),),
            calibration=calibration,
            criteria=criteria,
            options=evaluation,
            force=force,
            resume=resume,
            dry_run=dry_run,
        )
        return carried_out(session, request)

    run.__doc__ = f"{method.summary}\n\n{method.example}"
    run.__annotations__["config"] = method.load_config()
    return verb(run, without=() if method.calibration else ("calibration",))


def _check_required(method: Method, config: BaseModel) -> None:
    """Raise InputError for a step that would change nothing, since nothing was asked of it."""
    for name in method.required:
        if not getattr(config, name):
            raise InputError(f"no {name} given", f"see kanna {' '.join(method.words)} --help")


def real(method: Method) -> Any:
    """The command of a method: its step, or the group of its step and its further verbs."""
    if method.command:
        return command_at(method.words[0], method.command)
    if not method.commands:
        return command(method.words[0], step_verb(method))
    group: typer.Typer = load(method.commands)
    combined = typer.Typer(cls=VerbGroup, name=method.words[0], help=method.group, no_args_is_help=True)
    combined.command(method.words[-1], cls=VerbCommand)(step_verb(method))
    combined.registered_commands += group.registered_commands
    return typer.main.get_group(combined)
