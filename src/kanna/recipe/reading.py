"""Read a recipe; imports nothing heavy, so that a wrong one is refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kanna.checked import read_yaml
from kanna.errors import InputError
from kanna.methods import method, reader_of
from kanna.recipe.schema import EXAMPLE, Recipe
from kanna.runs.criteria import Criteria, criteria_from, read_criteria
from kanna.runs.method import Method
from kanna.runs.settings import parse
from kanna.wrong import what_is_wrong


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        InputError: Missing, not YAML, unknown or missing keys, an unknown method, settings that are wrong.
    """
    path = Path(path).expanduser()
    recipe = recipe_of(read_yaml(path, EXAMPLE), str(path))
    steps_of(recipe, str(path))
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


def steps_of(recipe: Recipe, where: str) -> tuple[tuple[Method, BaseModel], ...]:
    """The steps with their settings.

    Raises:
        InputError: A step that names no method or several, or whose settings are wrong; its number is named.
    """
    return tuple(_step(step, f"{where}: step {number}") for number, step in enumerate(recipe.steps, 1))


def criteria_in(recipe: Recipe) -> Criteria | None:
    """What may be lost, where the recipe says so.

    Raises:
        InputError: A tolerance that cannot be read.
    """
    if recipe.tolerance is None:
        return None
    if isinstance(recipe.tolerance, str):
        return read_criteria(recipe.tolerance)
    return criteria_from(recipe.tolerance)


def _step(step: Mapping[str, Any], where: str) -> tuple[Method, BaseModel]:
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
    return chosen, config
