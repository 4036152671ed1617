"""kanna run"""

from pathlib import Path
from typing import Annotated

import typer

from kanna.cli.lowrank import announce, show
from kanna.cli.options import Force
from kanna.cli.session import Session, verb


@verb
def run(
    session: Session,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Model, output and steps.")],
    force: Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
) -> int:
    """Carry out a recipe: {model, out, calibration, steps: [{lowrank: {keep: 0.8}}]}."""
    from kanna.recipe.recipe import read_recipe
    from kanna.recipe.recipe import run as carry_out

    read = read_recipe(recipe)
    with session.resumable(read.out), session.progress() as progress:
        result = carry_out(
            read,
            force=force,
            resume=resume,
            dry_run=dry_run,
            announce=lambda plan: announce(session, plan, Path(read.out)),
            progress=progress,
        )
    return show(session, result)
