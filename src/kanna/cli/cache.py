"""kanna cache"""

from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.places import CacheReport

Action = Annotated[str, typer.Argument(metavar="[show|clear]", help="clear removes it; results stay.")]


@verb
def cache(session: Session, action: Action = "show") -> None:
    """Show or clear what kanna keeps between runs: input statistics and spectra."""
    from kanna.runs.places import cache_report, clear_cache

    if action not in ("show", "clear"):
        raise InputError(f"there is no action {action!r}", "choose show or clear")
    found = clear_cache() if action == "clear" else cache_report()
    session.show(found.to_dict(), lambda console: _render(console, found))


def _render(console: "Console", found: "CacheReport") -> None:
    from kanna.reporting.console import table
    from kanna.reporting.wording import size

    rows = [[kind, size(count)] for kind, count in found.bytes.items()]
    console.print(f"{found.directory}{', cleared' if found.cleared else ''}")
    console.print(table(("kind", ">freed" if found.cleared else ">size"), rows))
