"""kanna report"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.terminal.asking import Force
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.reporting.report import ReportResult


@verb
def report(
    session: Session,
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Folders that verbs wrote with --out; models of kanna.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.html", help="The page; its Markdown lies beside it.")
    ] = Path("report.html"),
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="Of the page.")
    ] = "Compression report",
    examples: Annotated[
        bool, typer.Option("--examples/--no-examples", help="Show the texts of examples that changed.")
    ] = True,
    force: Force = False,
) -> None:
    """One page of verdicts, tables and plots that works without a network, and the same as Markdown.

    kanna report RESULTS MODEL --out report.html
    """
    from kanna.recipe.report import report as write

    result = write(directories, out, title=title, examples=examples, force=force)
    session.show(result.to_dict(), lambda console: _render(console, result))


def _render(console: "Console", result: "ReportResult") -> None:
    for name, status in result.verdicts.items():
        console.print(f"{status.upper() if status == 'fail' else status}: {name}")
    console.print(f"written: {result.html}")
    console.print(f"written: {result.markdown}")
    if result.trials is not None:
        console.print(f"written: {result.trials}")
