"""kanna import"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kanna.terminal import asking
from kanna.terminal.asking import Force
from kanna.terminal.early import check_out, check_paths
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.imported import Imported


@verb
def import_quantized(
    session: Session,
    model: Annotated[
        str,
        typer.Argument(
            metavar="QUANTISED", help="Directory, or hub id in the cache: GPTQ, compressed-tensors."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the result.")],
    force: Force = False,
) -> int:
    """Take over a model that others quantised (GPTQ, compressed-tensors), every code as it is.

    kanna import QUANTISED --out BASE
    """
    check_paths([model])
    check_out(out, force)
    from kanna.runs.imported import import_quantized

    with session.progress() as progress:
        done = import_quantized(model, out, force=force, progress=progress)
    session.show(done.to_dict(), lambda console: _render(console, done))
    return 0 if done.passed else asking.VERDICT_FAILED


def _render(console: "Console", done: "Imported") -> None:
    from kanna.reporting.wording import size

    console.print(f"{done.layers} layers of whole numbers from {done.format}, their codes as they are")
    console.print(f"weights: {size(done.bytes)}")
    read = "written and read back: logits finite" if done.passed else f"verdict: FAIL: {done.verdict.reason}"
    console.print(read)
    console.print(f"written: {done.out}")
