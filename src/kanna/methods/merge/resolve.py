"""Which values hold for which tensor: those beside a model go before those of all models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kanna.errors import InputError
from kanna.methods.merge.known import Parameter
from kanna.methods.merge.layers import Layers
from kanna.methods.merge.recipe import Recipe, Source
from kanna.methods.merge.settings import Setting
from kanna.methods.merge.tree import Node

# Weights cancel where their sum is this small a part of their sizes.
CANCELLED = 1e-9


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


def resolved(recipe: Recipe, tensors: Iterable[str], layers: Layers | None) -> dict[str, Values]:
    """The values of every tensor.

    Raises:
        InputError: A parameter that must be given has no value for a tensor; a gradient without layers;
            weights that are to be normalised and cancel.
    """
    _check_gradients(recipe, layers)
    found = {}
    for tensor in tensors:
        position = 0.0 if layers is None else layers.position(tensor)
        found[tensor] = _values(recipe, tensor, position)
    return found


def warnings_of(recipe: Recipe, layers: Layers | None) -> tuple[str, ...]:
    """What tensors outside of layers get, where somebody may think otherwise."""
    ends = sorted({name for name, setting in _settings(recipe) if setting.ends_differ})
    if layers is None or not ends:
        return ()
    named = " and ".join(ends)
    return (
        f"embeddings, final norm and head get the first value of the gradient of {named}, as in mergekit",
    )


def _settings(recipe: Recipe) -> list[tuple[str, Setting]]:
    given = (recipe.parameters, *(source.parameters for source in recipe.sources))
    return [item for parameters in given for item in parameters.items()]


def _check_gradients(recipe: Recipe, layers: Layers | None) -> None:
    if layers is not None:
        return
    for name, setting in _settings(recipe):
        if setting.graded:
            raise recipe.place.error(
                Node(None, setting.line),
                f"{name} depends on the layer, and the layers of this model cannot be told by their names",
                "give one value, or filters by names of tensors",
            )


def _values(recipe: Recipe, tensor: str, position: float) -> Values:
    rule = recipe.rule
    of_all = {
        name: _value(recipe, None, name, parameter, tensor, position)
        for name, parameter in rule.of_all.items()
    }
    of_models = {
        name: tuple(
            0.0
            if rule.needs_base and source.model == recipe.base
            else _value(recipe, source, name, parameter, tensor, position)
            for source in recipe.sources
        )
        for name, parameter in rule.of_models.items()
    }
    _refuse_cancelled(recipe, tensor, of_models["weight"], of_all["normalize"])
    return Values(tuple(of_models.items()), tuple(of_all.items()))


def _value(
    recipe: Recipe,
    source: Source | None,
    name: str,
    parameter: Parameter,
    tensor: str,
    position: float,
) -> float:
    own: Mapping[str, Setting] = {} if source is None else source.parameters
    for given in (own, recipe.parameters):
        value = given[name].value(tensor, position) if name in given else None
        if value is not None:
            return value
    if parameter.default is not None:
        return parameter.default
    whose = "" if source is None else f" of {source.model}"
    node = Node(None, recipe.line if source is None else source.line)
    remedy = f"give {name} beside the model or under parameters: at the top, for all tensors"
    if source is not None and source.model == recipe.base:
        remedy += f"; under {recipe.method} the base model is merged like the others"
    raise recipe.place.error(node, f"{name}{whose} has no value for the tensor {tensor}", remedy)


def _refuse_cancelled(recipe: Recipe, tensor: str, weights: tuple[float, ...], normalize: float) -> None:
    """Nothing can be divided by a sum of 0; where differences have no weight at all, nothing is added."""
    size = sum(map(abs, weights))
    if not normalize or abs(math.fsum(weights)) > CANCELLED * size:
        return
    if recipe.rule.needs_base and (size == 0 or recipe.method == "ties"):  # ties divides entry by entry
        return
    raise InputError(
        f"{recipe.place.name}: the weights of {tensor} sum to 0 and are to be normalised",
        "give others, or normalize: false",
    )
