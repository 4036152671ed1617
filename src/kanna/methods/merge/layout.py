"""Which tensors a merge has, and which tensors of which models each is made from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kanna.errors import InputError
from kanna.methods.merge.inputs import Inputs, compare_tensors
from kanna.methods.merge.layers import Layers, position
from kanna.methods.merge.modules import Assigned, Owners, assigned
from kanna.methods.merge.recipe import Recipe, Slice, Source
from kanna.methods.merge.tree import Node

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
        stacks: Role of a stack -> its layers, where they are not those of the first model, in their places.
        layered: Whether it is known which tensors lie in which layer.
    """

    targets: tuple[Target, ...]
    stacks: Mapping[str, Stack]
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
    stacks = inputs.stacks[inputs.first]
    rooms = assigned(recipe, stacks)
    owners = Owners(rooms, stacks)
    targets: list[Target] = []
    moved: dict[str, Stack] = {}
    for number, room in enumerate(rooms):
        shelf.check(room)
        mine = partial(owners.owns, number)
        targets += _outside(shelf, room.module.slices[0], partial(mine, before=True))
        for role in room.stacks:
            inside, stack = _layers(shelf, room.module.slices, role)
            targets += inside
            if not _in_place(stack, shelf.stack(inputs.first, role)):
                moved[role] = stack
        targets += _outside(shelf, room.module.slices[-1], partial(mine, before=False))
    for target in targets:
        parts = [(inputs.models[part.model], part.tensor) for part in target.parts]
        compare_tensors(parts, target.name in of_tokens)
    places = {name: place for place, name in enumerate(inputs.lead.tensors)}
    targets.sort(key=lambda target: places.get(target.name, len(places)))
    return Layout(tuple(targets), moved, bool(stacks))


def _in_place(stack: Stack, first: Layers | None) -> bool:
    """Whether every layer is where it was."""
    same = all({number for _, number in layer} == {place} for place, layer in enumerate(stack))
    return first is None or (same and first.count == len(stack))


@dataclass(frozen=True)
class _Held:
    """Tensors of a model: those of each layer by what stands behind its number, and all others.

    Args:
        layers: By the role of their stack, and their number in it.
        others: Name in the output -> name.
    """

    layers: Mapping[tuple[str, int], Mapping[str, str]]
    others: Mapping[str, str]


class _Shelf:
    """The models of a recipe, by the names that it gives them."""

    def __init__(self, recipe: Recipe, inputs: Inputs, heads: Heads | None) -> None:
        self.recipe, self.inputs = recipe, inputs
        self._numbers = {name: number for number, name in enumerate(recipe.models)}
        self._held = [
            _held(model.tensors, stacks, {} if heads is None else heads.of(number))
            for number, (model, stacks) in enumerate(zip(inputs.models, inputs.stacks, strict=True))
        ]

    def number(self, source: Source) -> int:
        return self._numbers[source.model]

    def stack(self, model: int, role: str) -> Layers | None:
        return next((stack for stack in self.inputs.stacks[model] if stack.role == role), None)

    def held(self, source: Source) -> _Held:
        return self._held[self.number(source)]

    def range(self, source: Source, role: str) -> tuple[int, int]:
        layers = self.stack(self.number(source), role)
        return source.layers or (0, 0 if layers is None else layers.count)

    def check(self, room: Assigned) -> None:
        """Raises InputError where a model does not have the layers that a recipe takes."""
        for source in (source for one in room.module.slices for source in one.sources):
            if source.layers is not None:
                self._check_range(source, source.layers, room.stacks)

    def _check_range(self, source: Source, taken: tuple[int, int], roles: Sequence[str]) -> None:
        layers = self.stack(self.number(source), roles[0]) if roles else None
        node = Node(None, source.line)
        if layers is None:
            said = f"the layers of {source.model} cannot be told by the names of its tensors"
            raise self.recipe.place.error(node, said, "merge whole models, with models:")
        if taken[1] > layers.count:
            raise self.recipe.place.error(
                node,
                f"layer_range {list(taken)} goes beyond {source.model}, which has {layers.count} layers",
                f"give a range within [0, {layers.count}]",
            )


def _held(tensors: Mapping[str, object], stacks: Sequence[Layers], serving: Mapping[str, str]) -> _Held:
    inside: dict[tuple[str, int], dict[str, str]] = {}
    others = {}
    for name in tensors:
        for stack in stacks:
            number, rest = stack.parts(name)
            if number is not None:
                inside.setdefault((stack.role, number), {})[rest] = name
                break
        else:
            others[name] = name
    return _Held(inside, {**others, **serving})


def _layers(shelf: _Shelf, slices: Sequence[Slice], role: str) -> tuple[list[Target], Stack]:
    """The tensors of all layers of a stack, and what each layer is merged from."""
    targets: list[Target] = []
    stack: list[tuple[tuple[int, int], ...]] = []
    first = shelf.stack(shelf.number(slices[0].sources[0]), role)
    for one in slices:
        ranges = [shelf.range(source, role) for source in one.sources]
        length = _length(shelf, one, ranges)
        for index in range(length):
            assert first is not None
            layer = tuple(
                (shelf.number(source), start + index)
                for source, (start, _) in zip(one.sources, ranges, strict=True)
            )
            held = [
                shelf.held(source).layers.get((role, start + index), {})
                for source, (start, _) in zip(one.sources, ranges, strict=True)
            ]
            targets += [
                Target(first.name(len(stack), rest), parts, one, position(index, length))
                for rest, parts in _common(shelf, one, held)
            ]
            stack.append(layer)
    return targets, tuple(stack)


def _length(shelf: _Shelf, one: Slice, ranges: Sequence[tuple[int, int]]) -> int:
    """How many layers a slice has, of each of its models."""
    lengths = [end - start for start, end in ranges]
    for source, length in zip(one.sources, lengths, strict=True):
        if length != lengths[0]:
            raise shelf.recipe.place.error(
                Node(None, source.line),
                f"{source.model} has {length} layers, and {one.sources[0].model} has {lengths[0]}",
                "merge models of as many layers, or give slices",
            )
    return lengths[0]


def _outside(shelf: _Shelf, one: Slice, wanted: Callable[[str], bool]) -> list[Target]:
    """Tensors in no layer, of those that are wanted."""
    held = [
        {name: own for name, own in shelf.held(source).others.items() if wanted(name)}
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
