"""kanna run"""

from pathlib import Path
from typing import Annotated

import typer

from kanna.methods.laser import tables as laser_tables
from kanna.methods.lowrank import verb as lowrank
from kanna.terminal.options import Force
from kanna.terminal.session import Session, verb


@verb
def run(
    session: Session,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Model, output and steps.")],
    force: Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
) -> int:
    """Carry out a recipe: {model, out, calibration, steps: [{lowrank: {keep: 0.8}}]}."""
    from kanna.methods.laser.plan import Plan as LaserPlan
    from kanna.methods.laser.run import LaserResult
    from kanna.recipe.recipe import AnyPlan, read_recipe
    from kanna.recipe.recipe import run as carry_out

    read = read_recipe(recipe)

    def announce(plan: AnyPlan) -> None:
        if isinstance(plan, LaserPlan):
            laser_tables.announce(session, plan)
        else:
            lowrank.announce(session, plan, Path(read.out))

    with session.resumable(read.out), session.progress() as progress:
        result = carry_out(
            read,
            force=force,
            resume=resume,
            dry_run=dry_run,
            announce=announce,
            progress=progress,
        )
    if isinstance(result, LaserResult):
        return laser_tables.show(session, result)
    return lowrank.show(session, result)
