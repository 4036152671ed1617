"""Commands whose code is loaded when they are run, not when they are listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand


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
        return self._load().make_context(info_name, args, parent, **extra)
