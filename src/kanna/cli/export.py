"""kanna export"""

from pathlib import Path
from typing import Annotated

import typer

from kanna.cli.options import Directory, Force
from kanna.cli.session import Session, verb
from kanna.errors import InputError


@verb
def export(
    session: Session,
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the result.")],
    form: Annotated[str, typer.Option("--format", metavar="dense", help="What other tools shall read.")],
    force: Force = False,
) -> None:
    """Write a compressed model for tools that do not know kanna; dense multiplies every factor out."""
    if form != "dense":
        raise InputError(f"there is no format {form!r}", "choose --format dense")
    from kanna.checkpoint.reader import Checkpoint
    from kanna.exporters.dense import dense

    written = dense(directory, out, force=force)
    count = Checkpoint.open(written).bytes
    result = {"schema_version": 1, "out": str(written), "format": form, "bytes": count}
    session.show(result, lambda console: console.print(f"written: {written} ({count:,} bytes of weights)"))
