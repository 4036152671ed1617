"""Read a recipe and carry it out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kanna.checked import read_yaml
from kanna.errors import InputError
from kanna.methods import method, reader_of
from kanna.progress import Progress
from kanna.recipe.schema import EXAMPLE, Recipe
from kanna.result import replace
from kanna.runs.criteria import Criteria, criteria_from, read_criteria
from kanna.runs.request import Call, Request
from kanna.runs.runner import Announce, RunResult, carry_out
from kanna.runs.settings import parse
from kanna.tasks.options import EvalOptions
from kanna.wrong import what_is_wrong


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        InputError: Missing, not YAML, unknown or missing keys, an unknown method, settings that are wrong.
    """
    path = Path(path).expanduser()
    recipe = recipe_of(read_yaml(path, EXAMPLE), str(path))
    calls(recipe, str(path))
    return recipe


def recipe_of(data: object, where: str) -> Recipe:
    """The recipe that a mapping says; see `read_recipe`."""
    if (other := reader_of(data)) is not None:
        raise InputError(f"{where} is no recipe of steps, but a file of {other.name}", other.example)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        what = (
            what_is_wrong(error, Recipe) if isinstance(data, Mapping) else "the file holds no keys and values"
        )
        raise InputError(f"{where}: {what}", f"a recipe looks like {EXAMPLE}") from error


def calls(recipe: Recipe, where: str) -> tuple[Call, ...]:
    """The steps with their settings.

    Raises:
        InputError: A step that names no method or several, or whose settings are wrong; its number is named.
    """
    return tuple(_call(step, f"{where}: step {number}") for number, step in enumerate(recipe.steps, 1))


def run(
    recipe: str | Path | Recipe | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    cache: Path | None = None,
    announce: Announce = lambda _: None,
    progress: Progress = lambda *_: None,
) -> RunResult:
    """Carry a recipe out: its steps one after the other, the result compared with the model it began with.

    Args:
        recipe: A file, or what it would hold.
        out: New directory, in the place of the recipe's.
        force: Replace `out`, and start over where an unfinished run is in the way.
        resume: Continue an unfinished run for `out`, at the step it was in.
        dry_run: Only say what would be done, as far as it is known.
        cache: Where statistics are kept between runs; kanna's cache directory by default.
        announce: Called with the plan of each step before its long work begins.
        progress: Called with (stage, done, total).

    Raises:
        InputError: Whatever is wrong with the recipe or the request, before anything is written.
    """
    read, where = _read(recipe)
    options = replace(read.evaluation or EvalOptions(), device=read.device)
    request = Request(
        read.model,
        read.out if out is None else out,
        calls(read, where),
        calibration=read.calibration,
        criteria=_criteria(read),
        options=options,
        cache=cache,
        force=force,
        resume=resume,
        dry_run=dry_run,
    )
    return carry_out(request, announce, progress)


def _read(recipe: str | Path | Recipe | Mapping[str, Any]) -> tuple[Recipe, str]:
    if isinstance(recipe, Recipe):
        return recipe, "the recipe"
    if isinstance(recipe, Mapping):
        return recipe_of(recipe, "the recipe"), "the recipe"
    return read_recipe(recipe), str(recipe)


def _criteria(recipe: Recipe) -> Criteria | None:
    if recipe.tolerance is None:
        return None
    if isinstance(recipe.tolerance, str):
        return read_criteria(recipe.tolerance)
    return criteria_from(recipe.tolerance)


def _call(step: Mapping[str, Any], where: str) -> Call:
    if len(step) != 1:
        raise InputError(f"{where} must name one method, found {sorted(step)}", "make each a step of its own")
    [(name, settings)] = step.items()
    chosen = method(name)
    if not chosen.step:
        remedy = f"kanna {' '.join(chosen.words)} --help says how; then begin a recipe with what that wrote"
        raise InputError(f"{where}: {name} takes several models, and is no step of a chain", remedy)
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"{where}: {name} must hold settings, found {settings!r}", f"write {name}: {{...}}")
    known = chosen.load_config().model_fields
    for key in settings or {}:
        if key in Recipe.model_fields and key not in known:
            raise InputError(f"{where}: {key} is no setting of {name}", "move it to the top, beside steps")
    config = parse(chosen.load_config(), settings or {}, "see kanna run --schema", f"{where}: {name}: ")
    for key in chosen.required:
        if key not in config.model_fields_set:
            remedy = f"write {name}: {{{key}: [...]}}, or {key}: [] for a step that changes nothing"
            raise InputError(f"{where}: {name}: no {key} given", remedy)
    return Call(chosen, config)
