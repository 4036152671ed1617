"""kanna demo"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.terminal.asking import Force
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.reporting.demo import DemoResult


@verb
def demo(
    session: Session,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="For models, table and picture.")] = Path(
        "kanna-demo"
    ),
    force: Force = False,
) -> None:
    """Run the main job on a small model that comes with kanna, and show what is lost at each ratio."""
    from kanna.demo.run import demo as show

    with session.progress() as progress:
        result = show(out, force=force, progress=progress)
    session.show(result.to_dict(), lambda console: _render(console, result))


def _render(console: "Console", result: "DemoResult") -> None:
    from kanna.reporting.console import table
    from kanna.reporting.wording import percent, size

    rows = [
        [
            row.method,
            percent(row.keep),
            size(row.model_bytes),
            percent(row.model_bytes / result.rows[0].model_bytes),
            percent(row.right),
            f"{row.perplexity:.2f}",
        ]
        for row in result.rows
    ]
    headings = ("", ">matrices kept", ">model", ">model kept", ">questions right", ">perplexity")
    console.print(f"{result.matrices} matrices, {result.questions} questions")
    console.print(table(headings, rows))
    console.print(f"the commonest answer alone would be right in {percent(result.constant_answer)}")
    for sentence in result.lost:
        console.print(sentence)
    console.print(f"written: {result.out} (picture: demo.png)")
