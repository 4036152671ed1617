"""kanna inspect"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.terminal.asking import Model, Select
from kanna.terminal.early import check_paths
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.inspect import InspectResult

Spectra = Annotated[
    bool, typer.Option("--spectra", help="Compute singular values: effective and energy ranks. Cached.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw the spectra (.png, .svg, .pdf). Implies --spectra."),
]


@verb
def inspect(
    session: Session,
    model: Model,
    spectra: Spectra = False,
    plot: Plot = None,
    select: Select = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a picture that is there.")] = False,
) -> None:
    """List the matrices of a model: roles, shapes, bytes, break-even ranks; spectra if asked for.

    Headers alone are read unless --spectra or --plot is given. -v lists every matrix.
    """
    check_paths([model])
    if plot is not None:
        from kanna.runs.picture import check_picture

        check_picture(plot, force)
    from kanna.runs.inspect import inspect as look
    from kanna.runs.inspect import plot_spectra

    with session.progress() as progress:
        result = look(model, select=select, spectra=spectra or plot is not None, progress=progress)
    session.show(result.to_dict(), lambda console: _render(console, result, session.verbose))
    if plot is not None:
        session.say(f"spectra drawn in {plot_spectra(result, plot)}")


def _render(console: "Console", result: "InspectResult", every: bool) -> None:
    from kanna.reporting.console import draw
    from kanna.runs.inspected import section

    draw(console, section(result, every))
    if not every:
        console.print("-v lists every matrix, --json everything")
