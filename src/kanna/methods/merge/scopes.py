"""Of what a threshold is one: each tensor by itself, the tensors of a layer, or all of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kanna.errors import InputError
from kanna.methods.merge.known import LAYER, MODEL, SCOPE, SCOPES
from kanna.methods.merge.layers import stacks_of
from kanna.methods.merge.layout import Target
from kanna.methods.merge.modules import before_layers
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.resolve import Values

# What lies in no layer.
_BEFORE, _BEHIND = "before the layers", "behind the layers"
_ALL = "all tensors"
# Parameters that say how many entries are above a threshold.
_OF_THRESHOLDS = ("density", "gamma")


def scope_of(values: Values) -> str:
    """tensor, layer or model."""
    number = dict(values.of_all).get(SCOPE, SCOPES["tensor"])
    return next(word for word, one in SCOPES.items() if one == number)


def several(values: Values | None) -> bool:
    """Whether thresholds are those of several tensors."""
    return values is not None and scope_of(values) in (LAYER, MODEL)


def places(scope: str, config: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, str]:
    """Tensor -> what has one threshold with it; its own name for a scope of tensors.

    What lies in no layer is one of two places, before and behind all layers.
    """
    names = list(tensors)
    if scope == MODEL:
        return dict.fromkeys(names, _ALL)
    if scope != LAYER:
        return {name: name for name in names}
    stacks = stacks_of(config, names)
    found = {}
    for name in names:
        layers = (f"{one.prefix}{number}" for one in stacks if (number := one.number(name)) is not None)
        found[name] = next(layers, _BEFORE if before_layers(name) else _BEHIND)
    return found


def check_scopes(
    recipe: Recipe, found: Sequence[tuple[Target, Values]], config: Mapping[str, Any], layered: bool
) -> None:
    """What has one threshold has one density, and what it is of is said once.

    Args:
        config: Of the output.
        layered: Whether its layers are known.

    Raises:
        InputError: That does not hold.
    """
    scopes = sorted({scope_of(values) for _, values in found}, key=list(SCOPES).index)
    if len(scopes) > 1:
        raise InputError(
            f"{recipe.place.name}: {SCOPE} is {scopes[1]} for some tensors and {scopes[0]} for others",
            "give it once, under parameters: at the top",
        )
    if not found or scopes[0] not in (LAYER, MODEL):
        return
    if scopes[0] == LAYER and not layered:
        raise InputError(
            f"{recipe.place.name}: {SCOPE} is {LAYER}, and the layers of this model cannot be told by their "
            "names",
            f"write {SCOPE}: tensor, or {MODEL}",
        )
    where = places(scopes[0], config, [target.name for target, _ in found])
    held: dict[tuple[str, str, str], tuple[float, str]] = {}
    for target, values in found:
        for name in _OF_THRESHOLDS:
            each = dict(values.of_models).get(name, ())
            for source, value in zip(target.slice.sources, each, strict=False):
                if source.model == target.slice.base:
                    continue
                key = (where[target.name], source.model, name)
                before, tensor = held.setdefault(key, (value, target.name))
                if before != value:
                    raise InputError(
                        f"{recipe.place.name}: the {name} of {source.model} is {before:g} for {tensor} and "
                        f"{value:g} for {target.name}, but one threshold holds for both with {SCOPE}: "
                        f"{scopes[0]}",
                        f"give one {name} for each {scopes[0]}, or {SCOPE}: tensor",
                    )
