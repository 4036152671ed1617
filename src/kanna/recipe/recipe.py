"""Carry a recipe out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kanna.heard import Listener, heard
from kanna.recipe.reading import criteria_in, read_recipe, recipe_of, steps_of
from kanna.recipe.schema import Recipe
from kanna.result import replace
from kanna.runs.request import Call, Request
from kanna.runs.runner import Announce, RunResult, carry_out
from kanna.tasks.options import EvalOptions


def calls(recipe: Recipe, where: str) -> tuple[Call, ...]:
    """The steps with their settings.

    Raises:
        InputError: See `steps_of`.
    """
    return tuple(Call(chosen, config) for chosen, config in steps_of(recipe, where))


def run(
    recipe: str | Path | Recipe | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    cache: Path | None = None,
    announce: Announce = lambda _: None,
    progress: Listener = False,
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
        progress: True shows bars in a notebook, lines elsewhere; or a function of (stage, done, total).

    Returns:
        What was done: `out`, the steps with their figures, `status` (pass, fail, undecided, empty or not
        judged), and `comparison` with the base, where `criteria` were given.

    Raises:
        InputError: Whatever is wrong with the recipe or the request, before anything is written.
    """
    progress = heard(progress)
    read, where = _read(recipe)
    options = replace(read.evaluation or EvalOptions(), device=read.device)
    request = Request(
        read.model,
        read.out if out is None else out,
        calls(read, where),
        calibration=read.calibration,
        criteria=criteria_in(read),
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
