"""Help that says what is written: no colon of an example becomes a picture, no bracket a style."""

from __future__ import annotations

import re
from typing import Any

from rich.markup import escape

_NOTHING = "[not blink][/not blink]"


def literal(text: str) -> str:
    """A text that rich, which reads markup and names of emoji, shows as it stands."""
    return re.sub(r":(?=\S*:)", f":{_NOTHING}", escape(text))


def unescaped(text: str) -> str:
    """Backslash escapes mean what they mean in most languages."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def shown_literally(command: Any) -> Any:
    """The same command, or group of them, with all its help as it stands."""
    marked = getattr(command, "rich_markup_mode", None) is not None
    for one in (command, *getattr(command, "params", ())) if marked else ():
        for name in ("help", "short_help", "epilog"):
            text = getattr(one, name, None)
            if isinstance(text, str):
                setattr(one, name, literal(text))
    for inner in getattr(command, "commands", {}).values():
        shown_literally(inner)
    return command
