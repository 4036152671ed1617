"""kanna run"""

from pathlib import Path
from typing import Annotated

import typer

from kanna.errors import InputError
from kanna.methods import reader_of
from kanna.runs.method import Method, load
from kanna.terminal.asking import Force, Out
from kanna.terminal.early import check_out, check_paths, check_settings
from kanna.terminal.session import Session, verb


@verb
def run(
    session: Session,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE.yaml", help="Model, output and steps.")
    ] = None,
    out: Out = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")
    ] = False,
    force: Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
) -> int:
    """Carry out a recipe: steps one after the other, each on what the one before it wrote.

    {model: DIR, out: DIR, calibration: FILE, steps: [{METHOD: {SETTING: VALUE}}, ...]}

    A file with merge_method, as mergekit reads it, is merged.
    """
    if schema:
        import json

        from kanna.recipe.schema import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    if recipe is None:
        raise InputError("there is no recipe", "give a YAML file, or --schema to see what one may hold")
    if (other := _reader(recipe)) is not None:
        return int(load(other.file_verb)(session, recipe, out, force, resume, dry_run))
    from kanna.recipe.reading import criteria_in, read_recipe, steps_of

    read = read_recipe(recipe)
    target = out or (None if read.out is None else Path(read.out))
    check_out(target, force or resume or dry_run, needed=not dry_run)
    criteria = criteria_in(read)
    is_read = any(method.calibration for method, _ in steps_of(read, str(recipe)))
    texts = [read.calibration] if is_read else []  # of what no step reads, the runner says so
    check_paths([read.model], [*(() if criteria is None else criteria.files), *texts])
    check_settings({"device": read.device})
    from kanna.recipe.recipe import run as carry_out
    from kanna.terminal.steps import announce, show

    with session.resumable(target), session.progress() as progress:
        result = carry_out(
            read,
            out=out,
            force=force,
            resume=resume,
            dry_run=dry_run,
            announce=lambda plan: announce(session, plan, target),
            progress=progress,
        )
    return show(session, result)


def _reader(file: Path) -> Method | None:
    """The method whose file this is; None for a recipe, and for what is none: its reader says why."""
    import yaml

    try:
        documents = list(yaml.safe_load_all(file.expanduser().read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return next((found for data in documents if (found := reader_of(data)) is not None), None)
