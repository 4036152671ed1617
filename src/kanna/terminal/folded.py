"""Help that fits: what every verb has takes one line, and a flag without a value shows none."""

from __future__ import annotations

import copy
from typing import Any

from typer.core import TyperCommand, TyperGroup

PANEL = "Common options"
_COMMON = f"{PANEL}: --json, -v, -q, --log-file FILE, --threads N; see kanna --help."


class VerbCommand(TyperCommand):
    """A command whose help leaves out what `kanna --help` says for all of them."""

    def get_help_option(self, ctx: Any) -> Any:
        return _without_type(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = copy.copy(self)
        shown.params = [
            _without_type(param) for param in self.params if getattr(param, "rich_help_panel", None) != PANEL
        ]
        if len(shown.params) < len(self.params):
            shown.epilog = _COMMON
        TyperCommand.format_help(shown, ctx, formatter)


class VerbGroup(TyperGroup):
    """A group of commands, with the same flags."""

    def get_help_option(self, ctx: Any) -> Any:
        return _without_type(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = copy.copy(self)
        shown.params = [_without_type(param) for param in self.params]
        TyperGroup.format_help(shown, ctx, formatter)


def _without_type(param: Any) -> Any:
    """A flag as it is shown, without the type of a value that nobody writes."""
    if not (getattr(param, "is_flag", False) or getattr(param, "count", False)):
        return param
    shown = copy.copy(param)
    shown.metavar = ""
    return shown
