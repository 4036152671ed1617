"""Recipes of several documents: which comes before which, and what a result will be before it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.safetensors_format import DTYPE_NAMES, Stored
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.references import parsed
from kanna.methods.merge.tree import Node
from kanna.methods.merge.vocabulary import Foretold, tokenizer_of

if TYPE_CHECKING:
    from kanna.methods.merge.plan import MergePlan


def ordered(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """Each behind those whose results it takes, the one that makes the output last.

    What the output does not need is left out.

    Raises:
        InputError: A name that stands twice, several results, documents that need each other.
    """
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.name is not None and recipe.name in named:
            said = f"two documents have the name {recipe.name}"
            raise recipe.place.error(Node(None, recipe.line), said, "give each a name of its own")
        if recipe.name is not None:
            named[recipe.name] = recipe
    last = [recipe for recipe in recipes if recipe.name is None] or [recipes[-1]]
    if len(last) > 1:
        said = "two documents have no name, and only one can be the result"
        raise last[1].place.error(Node(None, last[1].line), said, "give all but the last one a name:")
    found: dict[int, Recipe] = {}
    _visit(last[0], named, found, ())
    return tuple(found.values())


def _visit(
    recipe: Recipe, named: Mapping[str, Recipe], found: dict[int, Recipe], above: tuple[str | None, ...]
) -> None:
    if recipe.name is not None and recipe.name in above:
        said = f"{recipe.name} is made from itself"
        raise recipe.place.error(Node(None, recipe.line), said, "take a model for one of the names")
    if id(recipe) in found:
        return
    for reference in recipe.models:
        model = parsed(reference, named).model
        if model in named:
            _visit(named[model], named, found, (*above, recipe.name))
    found[id(recipe)] = recipe


def foretold(plan: MergePlan, name: str) -> Checkpoint:
    """What a merge will have written, as far as headers and configuration tell; its values cannot be read."""
    lead = plan.inputs.lead
    file = lead.directory / f"{name} (not made yet)"
    tensors = {
        one.spec.name: Stored(file, DTYPE_NAMES[one.spec.dtype], one.spec.shape, 0, one.spec.bytes)
        for one in plan.tensors
    }
    tokenizer = plan.tokenizer or tokenizer_of(lead)
    return Foretold(lead.directory, name, plan.config, tensors, tokenizer)
