"""Flags that several verbs of merging share, each said once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from kanna.errors import InputError
from kanna.terminal.completing import DTYPES, one_of

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A file in mergekit's YAML.")]
OutDtype = Annotated[
    str | None,
    typer.Option(
        "--out-dtype",
        metavar="DTYPE",
        help="Of the output, in the place of the recipe's.",
        autocompletion=one_of(DTYPES),
    ),
]
MaxMemory = Annotated[
    str,
    typer.Option(
        "--max-memory", metavar="SIZE", help="Bytes that merging may take: 900M, 2G; evaluating comes on top."
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of methods that drop entries by chance.")]
Lax = Annotated[bool, typer.Option("--lax", help="What looks like a mistake in the recipe is a warning.")]
Load = Annotated[bool, typer.Option("--load/--no-load", help="Load the result to see that it computes.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted merge.")]
KeepIntermediates = Annotated[
    Path | None,
    typer.Option("--keep-intermediates", metavar="DIR", help="Where results of other documents stay."),
]
AsLora = Annotated[bool, typer.Option("--as-lora", help="Adapters of one base become one adapter of it.")]
LoraRank = Annotated[
    int | None, typer.Option("--rank", metavar="R", help="Of the layers of --as-lora, at most.")
]
JudgedTasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="NAME=FILE", help="A model of the recipe, and a task that it knows."),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop", metavar="DROP", help="Allowed drop from each expert: 1% of its score, or 1pt."
    ),
]


def size_of(text: str) -> int:
    """Bytes of "900M" or "2G".

    Raises:
        InputError: It is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise InputError(f"{text!r} is no size", "write 900M or 2G")
    return int(float(found[1]) * _UNITS[found[2].upper()])
