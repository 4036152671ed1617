"""A recipe: a model, an output, and steps, in YAML.

model: models/base
out: models/small
calibration: text.jsonl
steps:
  - lowrank: {keep: 0.8}
tolerance: app.yaml
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kanna.errors import InputError
from kanna.methods.laser.plan import Plan as LaserPlan
from kanna.methods.laser.run import LaserResult, laser_apply, laser_config
from kanna.methods.lowrank.plan import Plan
from kanna.methods.lowrank.run import LowRankResult, lowrank, parse_config
from kanna.runs.criteria import read_criteria
from kanna.tasks.evaluate import EvalOptions

Progress = Callable[[str, int, int], None]
_EXAMPLE = "{model: DIR, out: DIR, calibration: FILE, steps: [{lowrank: {keep: 0.8}}]}"
_METHODS = ("lowrank", "laser")
AnyPlan = Plan | LaserPlan


class Recipe(BaseModel):
    """What to do to which model.

    Args:
        model: Directory, or hub id in the local cache.
        out: New directory.
        calibration: Text for methods that need it.
        device: Where to compute.
        tolerance: YAML of tasks and what may be lost on them.
        steps: One mapping each, from the method's name to its settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    out: str
    calibration: str | None = None
    device: str = "cpu"
    tolerance: str | None = None
    steps: tuple[dict[str, dict[str, Any]], ...] = Field(min_length=1)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file. Relative paths in it are taken from where the program runs.

    Raises:
        InputError: Missing, not YAML, unknown or missing keys, an unknown method, or more than one step.
    """
    path = Path(path).expanduser()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(data)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", f"give a YAML file such as {_EXAMPLE}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}", "mend that line") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}", f"a recipe looks like {_EXAMPLE}") from error
    _check_steps(path, recipe)
    return recipe


def run(
    recipe: str | Path | Recipe,
    *,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    announce: Callable[[AnyPlan], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> LowRankResult | LaserResult:
    """Carry a recipe out; the arguments are those of `lowrank`.

    Raises:
        InputError: Whatever is wrong with the recipe or the request, before anything is written.
    """
    read = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    [(method, settings)] = read.steps[0].items()
    criteria = None if read.tolerance is None else read_criteria(read.tolerance)
    if method == "laser":
        _check_laser(read, resume)
        return laser_apply(
            read.model,
            read.out,
            laser_config(settings),
            force=force,
            dry_run=dry_run,
            device=read.device,
            criteria=criteria,
            options=EvalOptions(device=read.device),
            announce=announce,
            progress=progress,
        )
    return lowrank(
        read.model,
        read.out,
        parse_config(settings),
        calibration=read.calibration,
        force=force,
        resume=resume,
        dry_run=dry_run,
        device=read.device,
        criteria=criteria,
        options=EvalOptions(device=read.device),
        announce=announce,
        progress=progress,
    )


def _check_laser(recipe: Recipe, resume: bool) -> None:
    if recipe.calibration is not None:
        raise InputError("the step laser reads no calibration text", "leave calibration out of the recipe")
    if resume:
        raise InputError(f"there is no unfinished run for {recipe.out}", "leave out --resume")


def _check_steps(path: Path, recipe: Recipe) -> None:
    for number, step in enumerate(recipe.steps, 1):
        if len(step) != 1:
            raise InputError(f"{path}: step {number} must name one method, found {sorted(step)}", "split it")
        name = next(iter(step))
        if name not in _METHODS:
            raise InputError(f"{path}: step {number} is {name!r}", f"known: {', '.join(_METHODS)}")
    if len(recipe.steps) > 1:
        raise InputError(
            f"{path} has {len(recipe.steps)} steps; recipes of one step only can be run for now",
            "leave one step, and give its output to the next recipe where the method allows that",
        )
