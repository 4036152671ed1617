"""kanna demo"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.asking import Force
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.reporting.demo import DemoResult

_OUT = Path("kanna-demo")


@verb
def demo(
    session: Session,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="For models, table and picture.", show_default=str(_OUT)),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            "--files", metavar="DIR", help="Only write the model and its rows there, to try verbs on."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Run the main job on a small model that comes with kanna, and show what is lost at each ratio.

    kanna demo --files demo writes what the examples of the README begin with.
    """
    if files is not None:
        if out is not None:
            raise InputError("--files writes no models, table or picture to --out", "give one of the two")
        _copy(session, files, force)
        return
    from kanna.demo.run import demo as show

    with session.progress() as progress:
        result = show(out or _OUT, force=force, progress=progress)
    session.show(result.to_dict(), lambda console: _render(console, result))


def _copy(session: Session, files: Path, force: bool) -> None:
    from kanna.demo.copied import copy_files

    place, names = copy_files(files, force)
    told = f"written: {place}: {', '.join(names)}"
    session.show(
        {"schema_version": 1, "files": str(place), "names": names}, lambda console: console.print(told)
    )


def _render(console: "Console", result: "DemoResult") -> None:
    from kanna.reporting.console import table
    from kanna.reporting.wording import percent, size

    rows = [
        [
            row.method,
            row.setting,
            size(row.model_bytes),
            percent(row.model_bytes / result.rows[0].model_bytes),
            percent(row.right),
            f"{row.perplexity:.2f}",
        ]
        for row in result.rows
    ]
    headings = ("", "", ">model", ">model kept", ">questions right", ">perplexity")
    console.print(f"{result.matrices} matrices, {result.questions} questions")
    console.print(table(headings, rows))
    console.print(f"the commonest answer alone would be right in {percent(result.constant_answer)}")
    for sentence in result.lost:
        console.print(sentence)
    console.print(f"written: {result.out} (picture: demo.png)")
