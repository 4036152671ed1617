"""What can be refused at once: paths that are wrong, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kanna.checkpoint.location import locate
from kanna.tasks.data.rows import check_there
from kanna.tasks.data.task import HARNESS


def check_paths(models: Iterable[str | Path] = (), files: Iterable[str | Path | None] = ()) -> None:
    """Raise InputError for a model or a file of data that is not there, as whoever reads it would.

    Args:
        files: Tasks, which may be of lm_eval, and texts; None for what was not given.
    """
    for model in models:
        locate(model)
    for file in files:
        if file is not None and not str(file).startswith(HARNESS):
            check_there(Path(file))


def check_out(out: Path | None, replaced: bool) -> None:
    """Raise InputError for an output that is there already and is not to be replaced."""
    from kanna.runs.in_the_way import refuse_existing

    if out is not None and not replaced:
        refuse_existing(out, False)
