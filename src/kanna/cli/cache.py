"""kanna cache"""

from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.completing import one_of
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.places import CacheReport

Action = Annotated[
    str,
    typer.Argument(
        metavar="[show|clear]",
        help="clear removes it; results stay.",
        autocompletion=one_of(("show", "clear")),
    ),
]


@verb
def cache(
    session: Session,
    action: Action = "show",
    clear: Annotated[bool, typer.Option("--clear", help="The same as clear.")] = False,
) -> None:
    """Show or clear what kanna keeps between runs: input statistics, spectra, scores and compiled loops."""
    from kanna.runs.places import cache_report, clear_cache

    if action not in ("show", "clear"):
        raise InputError(f"there is no action {action!r}", "choose show or clear")
    report = clear_cache() if clear or action == "clear" else cache_report()
    session.show(report.to_dict(), lambda console: _render(console, report))


def _render(console: "Console", report: "CacheReport") -> None:
    from kanna.reporting.console import table
    from kanna.reporting.wording import size

    rows = [[kind, size(count)] for kind, count in report.bytes.items()]
    console.print(f"{report.directory}{', cleared' if report.cleared else ''}")
    console.print(table(("kind", ">freed" if report.cleared else ">size"), rows))
