"""Which values hold for which tensor: those beside a model go before those of all models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kanna.errors import InputError
from kanna.methods.merge.known import SPREAD, Parameter
from kanna.methods.merge.layout import Target
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.settings import Setting
from kanna.methods.merge.tree import Node

# Weights cancel where their sum is this small a part of their sizes.
CANCELLED = 1e-9
# Parameters that say that weights are divided by their sum.
_NORMALISE = ("normalize", "normalize_weights")


@dataclass(frozen=True)
class Values:
    """What holds for one tensor.

    Args:
        of_models: Parameter -> one value for each model; a base that differences are taken from has 0.
        of_all: Parameter -> value.
    """

    of_models: tuple[tuple[str, tuple[float, ...]], ...]
    of_all: tuple[tuple[str, float], ...]

    def each(self, name: str) -> tuple[float, ...]:
        return dict(self.of_models)[name]

    def one(self, name: str) -> float:
        return dict(self.of_all)[name]


def resolved(recipe: Recipe, targets: Iterable[Target]) -> dict[str, Values]:
    """The values of every tensor.

    Raises:
        InputError: A parameter that must be given has no value for a tensor; weights that are to be
            normalised and cancel.
    """
    return {target.name: _values(recipe, target) for target in targets}


def check_gradients(recipe: Recipe) -> None:
    """For models whose layers are not known.

    Raises:
        InputError: A parameter depends on the layer.
    """
    for name, setting in _settings(recipe):
        if setting.graded:
            raise recipe.place.error(
                Node(None, setting.line),
                f"{name} depends on the layer, and the layers of this model cannot be told by their names",
                "give one value, or filters by names of tensors",
            )


def warnings_of(recipe: Recipe) -> tuple[str, ...]:
    """What tensors outside of layers get, where somebody may think otherwise."""
    ends = sorted({name for name, setting in _settings(recipe) if setting.ends_differ})
    if not ends:
        return ()
    named = " and ".join(ends)
    return (
        f"embeddings, final norm and head get the first value of the gradient of {named}, as in mergekit",
    )


def _settings(recipe: Recipe) -> list[tuple[str, Setting]]:
    return [item for one in recipe.slices for item in one.settings]


def _values(recipe: Recipe, target: Target) -> Values:
    rule, base = recipe.rule, target.slice.base_index
    of_all = {name: _value(recipe, target, None, name, parameter) for name, parameter in rule.of_all.items()}
    of_models = {
        name: tuple(
            0.0 if rule.from_base and index == base else _value(recipe, target, index, name, parameter)
            for index in range(len(target.parts))
        )
        for name, parameter in rule.of_models.items()
    }
    _refuse_cancelled(recipe, target.name, of_models, of_all)
    _refuse_no_chance(recipe, target, of_models)
    return Values(tuple(of_models.items()), tuple(of_all.items()))


def _value(recipe: Recipe, target: Target, index: int | None, name: str, parameter: Parameter) -> float:
    """Of a parameter for all models (index None) or one; filters look at the tensor's name in that model."""
    source = None if index is None else target.slice.sources[index]
    tensor = target.name if index is None else target.parts[index].tensor
    own: Mapping[str, Setting] = {} if source is None else source.parameters
    for given in (own, *target.slice.shared):
        value = given[name].value(tensor, target.position) if name in given else None
        if value is not None:
            return value
    if parameter.default is not None:
        return parameter.default
    whose = "" if source is None else f" of {source.model}"
    node = Node(None, recipe.line if source is None else source.line)
    remedy = f"give {name} beside the model or under parameters: at the top, for all tensors"
    if source is not None and source.model == target.slice.base:
        remedy += f"; under {recipe.method} the base model is merged like the others"
    raise recipe.place.error(node, f"{name}{whose} has no value for the tensor {tensor}", remedy)


def _refuse_cancelled(
    recipe: Recipe, tensor: str, of_models: Mapping[str, tuple[float, ...]], of_all: Mapping[str, float]
) -> None:
    """Nothing can be divided by a sum of 0; where differences have no weight at all, nothing is added."""
    weights = of_models.get("weight", ())
    size = sum(map(abs, weights))
    asked = next((name for name in _NORMALISE if of_all.get(name)), "")
    divided = asked or recipe.rule.divides
    if not weights or not divided or abs(math.fsum(weights)) > CANCELLED * size:
        return
    if recipe.rule.needs_base and (size == 0 or recipe.rule.elects):  # ties divides entry by entry
        return
    raise InputError(
        f"{recipe.place.name}: the weights of {tensor} sum to 0 and are to be normalised",
        f"give others, or {asked}: false" if asked else "give others",
    )


def _refuse_no_chance(recipe: Recipe, target: Target, of_models: Mapping[str, tuple[float, ...]]) -> None:
    """Probabilities that grow with the rank must be some for every rank; all or nothing needs none."""
    if SPREAD not in of_models:
        return
    for index, (density, spread) in enumerate(zip(of_models["density"], of_models[SPREAD], strict=True)):
        weightless = of_models["weight"][index] == 0
        if weightless or density in (0, 1) or 0 < density - spread <= density + spread < 1:
            continue
        raise InputError(
            f"{recipe.place.name}: density {density:g} and {SPREAD} {spread:g} of "
            f"{target.slice.sources[index].model} give probabilities from {density - spread:g} to "
            f"{density + spread:g} for {target.name}",
            f"choose them so that density - {SPREAD} is above 0 and density + {SPREAD} below 1",
        )
