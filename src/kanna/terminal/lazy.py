"""Commands whose code is loaded when they are run, not when they are listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from kanna.runs.method import load
from kanna.terminal.folded import VerbCommand
from kanna.terminal.literal import shown_literally


class LazyCommand(TyperCommand):
    """Stands for a command, or a group of them, in a list.

    Args:
        name: Of the command.
        summary: One sentence, for the list.
        load: Gives the real one.
    """

    def __init__(self, name: str, summary: str, load: Callable[[], Any]) -> None:
        super().__init__(name, help=summary)
        self._load = load

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return shown_literally(self._load()).make_context(info_name, args, parent, **extra)


def command(name: str, function: Callable[..., None]) -> Any:
    """The command behind one verb."""
    single = typer.Typer(add_completion=False)
    single.command(name, cls=VerbCommand)(function)
    return typer.main.get_command(single)


def command_at(name: str, place: str) -> Any:
    """The command, or the group of them, at "module:attribute"."""
    loaded = load(place)
    return typer.main.get_group(loaded) if isinstance(loaded, typer.Typer) else command(name, loaded)
