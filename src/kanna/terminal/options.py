"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Directory of a model, or a hub id that is in the local cache."),
]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="Directory of a model that kanna wrote.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="New directory for the result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there, once the new one is complete.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, mps.")]
Select = Annotated[
    str | None,
    typer.Option(
        "--select", metavar="EXPR", help="Which matrices: 'mlp', 'q,k,v@4-', 'down@-1', 're:REGEX'."
    ),
]
