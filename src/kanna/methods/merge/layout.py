"""Which tensors a merge has, and which tensors of which models each is made from."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kanna.errors import InputError
from kanna.methods.merge.inputs import Inputs, compare_tensors
from kanna.methods.merge.layers import Layers, position
from kanna.methods.merge.recipe import Recipe, Slice, Source
from kanna.methods.merge.tree import Node

# Tensors that come before the layers, by their names; what has none of these comes behind them.
_BEFORE = re.compile(r"(^|[._])(\w*embed(?!_out)\w*|emb|wte|wpe|project_in|positions?)([._]|$)")
# For each layer of the output, which layer of which model it is merged from.
Stack = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Part:
    """A tensor of an input.

    Args:
        model: Index of the model.
        tensor: Its name there.
    """

    model: int
    tensor: str


@dataclass(frozen=True)
class Heads:
    """Embeddings that serve as heads.

    Args:
        name: Of the head in the output.
        serving: Index of a model -> name of its embedding.
    """

    name: str
    serving: Mapping[int, str]

    def of(self, model: int) -> dict[str, str]:
        return {self.name: self.serving[model]} if model in self.serving else {}


@dataclass(frozen=True)
class Target:
    """A tensor of the output.

    Args:
        name: Its name.
        parts: What it is made from, in the order of the sources of its slice.
        slice: Whose parameters hold for it.
        position: Of its layer in that slice, 0 for the first and 1 for the last; 0 outside of layers.
    """

    name: str
    parts: tuple[Part, ...]
    slice: Slice
    position: float = 0.0


@dataclass(frozen=True)
class Layout:
    """All that a merge is made from.

    Args:
        targets: Its tensors, in the order of the files of the first model.
        stack: Its layers; None where they are those of the first model, in their places.
        layered: Whether it is known which tensors lie in which layer.
    """

    targets: tuple[Target, ...]
    stack: Stack | None
    layered: bool


def laid_out(
    recipe: Recipe, inputs: Inputs, of_tokens: Collection[str] = (), heads: Heads | None = None
) -> Layout:
    """The tensors of a merge.

    Args:
        of_tokens: Tensors that have a row for each token, and not the same rows everywhere.
        heads: Embeddings that serve as heads.

    Raises:
        InputError: A range of layers that a model does not have; a tensor that not all models of a slice
            have, or that has another shape or kind of numbers there.
    """
    shelf = _Shelf(recipe, inputs, heads)
    slices = recipe.slices
    for one in slices:
        for source in one.sources:
            shelf.check(source)
    inside, stack = _layers(shelf, slices)
    found = [*_outside(shelf, slices[0], True), *inside, *_outside(shelf, slices[-1], False)]
    for target in found:
        parts = [(inputs.models[part.model], part.tensor) for part in target.parts]
        compare_tensors(parts, target.name in of_tokens)
    places = {name: place for place, name in enumerate(inputs.lead.tensors)}
    found.sort(key=lambda target: places.get(target.name, len(places)))
    return Layout(tuple(found), _moved(stack, inputs), shelf.layers(slices[0].sources[0]) is not None)


def _moved(stack: Stack, inputs: Inputs) -> Stack | None:
    """None where every layer is where it was."""
    layers = inputs.layers[inputs.first]
    same = all({number for _, number in layer} == {place} for place, layer in enumerate(stack))
    return None if layers is None or (same and layers.count == len(stack)) else stack


@dataclass(frozen=True)
class _Held:
    """Tensors of a model: those of each layer by what stands behind its number, and all others.

    Args:
        others: Name in the output -> name.
    """

    layers: Mapping[int, Mapping[str, str]]
    others: Mapping[str, str]


class _Shelf:
    """The models of a recipe, by the names that it gives them."""

    def __init__(self, recipe: Recipe, inputs: Inputs, heads: Heads | None) -> None:
        self.recipe, self.inputs = recipe, inputs
        self._numbers = {name: number for number, name in enumerate(recipe.models)}
        self._held = [
            _held(model.tensors, layers, {} if heads is None else heads.of(number))
            for number, (model, layers) in enumerate(zip(inputs.models, inputs.layers, strict=True))
        ]

    def number(self, source: Source) -> int:
        return self._numbers[source.model]

    def layers(self, source: Source) -> Layers | None:
        return self.inputs.layers[self.number(source)]

    def held(self, source: Source) -> _Held:
        return self._held[self.number(source)]

    def range(self, source: Source) -> tuple[int, int]:
        layers = self.layers(source)
        return source.layers or (0, 0 if layers is None else layers.count)

    def check(self, source: Source) -> None:
        """Raises InputError where a model does not have the layers that a recipe takes."""
        if source.layers is None:
            return
        layers, node = self.layers(source), Node(None, source.line)
        if layers is None:
            said = f"the layers of {source.model} cannot be told by the names of its tensors"
            raise self.recipe.place.error(node, said, "merge whole models, with models:")
        if source.layers[1] > layers.count:
            raise self.recipe.place.error(
                node,
                f"layer_range {list(source.layers)} goes beyond {source.model}, which has "
                f"{layers.count} layers",
                f"give a range within [0, {layers.count}]",
            )


def _held(tensors: Mapping[str, object], layers: Layers | None, serving: Mapping[str, str]) -> _Held:
    inside: dict[int, dict[str, str]] = {}
    others = {}
    for name in tensors:
        number, rest = (None, name) if layers is None else layers.parts(name)
        if number is None:
            others[name] = name
        else:
            inside.setdefault(number, {})[rest] = name
    return _Held(inside, {**others, **serving})


def _layers(shelf: _Shelf, slices: Sequence[Slice]) -> tuple[list[Target], Stack]:
    """The tensors of all layers, and what each layer is merged from."""
    targets: list[Target] = []
    stack: list[tuple[tuple[int, int], ...]] = []
    first = shelf.layers(slices[0].sources[0])
    for one in slices:
        starts = [shelf.range(source)[0] for source in one.sources]
        length = shelf.range(one.sources[0])[1] - starts[0]
        for index in range(length):
            assert first is not None
            layer = tuple(
                (shelf.number(source), start + index)
                for source, start in zip(one.sources, starts, strict=True)
            )
            held = [
                shelf.held(source).layers.get(start + index, {})
                for source, start in zip(one.sources, starts, strict=True)
            ]
            targets += [
                Target(first.name(len(stack), rest), parts, one, position(index, length))
                for rest, parts in _common(shelf, one, held)
            ]
            stack.append(layer)
    return targets, tuple(stack)


def _outside(shelf: _Shelf, one: Slice, before: bool) -> list[Target]:
    """Tensors in no layer: those before the layers are of the first slice, the others of the last."""
    held = [
        {
            name: own
            for name, own in shelf.held(source).others.items()
            if (_BEFORE.search(name) is not None) is before
        }
        for source in one.sources
    ]
    return [Target(name, parts, one) for name, parts in _common(shelf, one, held)]


def _common(
    shelf: _Shelf, one: Slice, held: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """What stands in all models under the same name (of a layer: behind its number).

    Raises:
        InputError: One of them lacks it.
    """
    numbers = [shelf.number(source) for source in one.sources]
    lead = max(0, one.base_index)
    for name in (*held[lead], *(name for names in held for name in names if name not in held[lead])):
        for number, names in zip(numbers, held, strict=True):
            if name not in names:
                has = next(index for index, there in enumerate(held) if name in there)
                _refuse_missing(shelf, number, numbers[has], held[has][name])
        yield name, tuple(Part(number, names[name]) for number, names in zip(numbers, held, strict=True))


def _refuse_missing(shelf: _Shelf, lacks: int, has: int, name: str) -> None:
    here, there = shelf.inputs.models[has], shelf.inputs.models[lacks]
    raise InputError(
        f"{there.directory} holds no tensor {name!r}, which {here.directory} has "
        f"({here.tensors[name].file.name})",
        "models must have the same tensors",
    )
