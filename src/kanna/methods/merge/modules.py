"""Models of several modules, such as encoder and decoder: which part of a recipe speaks of which tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kanna.errors import InputError
from kanna.methods.merge.layers import AUDIO, DECODER, ENCODER, TEXT, VISION, Layers
from kanna.methods.merge.recipe import Module, Recipe
from kanna.methods.merge.tree import Node

# What recipes call a stack of layers, whatever the names of its tensors are; the first is how it is told.
_CALLED: Mapping[str, tuple[str, ...]] = {
    TEXT: ("text_decoder", "language_model", "text_model", "text"),
    VISION: ("vision_tower", "vision_model", "vision_encoder", "visual", "vision"),
    AUDIO: ("audio_tower", "audio_encoder", "audio"),
    ENCODER: ("encoder",),
    DECODER: ("decoder",),
}
# Of all tensors that no other module has.
_REST = "default"
# Between images or sounds and text.
_BETWEEN, _CALLED_BETWEEN = re.compile(r"projector|merger|connector"), "projector"
# Tensors that come before the layers, by their names; what has none of these comes behind them.
# `shared` are the embeddings of an encoder and its decoder.
_BEFORE = re.compile(
    r"(^|[._])(\w*embed(?!_out)\w*|emb|wte|wpe|project_in|positions?)([._]|$)|(^|\.)shared\.weight$"
)


@dataclass(frozen=True)
class Assigned:
    """A part of a recipe, and the layers that it speaks of.

    Args:
        module: The part.
        stacks: Roles of the stacks of layers; one where ranges of layers are given.
    """

    module: Module
    stacks: tuple[str, ...]


def assigned(recipe: Recipe, stacks: Sequence[Layers]) -> tuple[Assigned, ...]:
    """Which stacks of layers each module of a recipe is.

    Args:
        stacks: Of the first model.

    Raises:
        InputError: A module that the model does not have, layers that no module speaks of, ranges of layers
            for a model of several modules.
    """
    if len(recipe.modules) == 1 and (recipe.modules[0].name is None or len(stacks) < 2):
        (only,) = recipe.modules
        if only.sliced and len(stacks) > 1:
            raise _error(
                recipe,
                only,
                f"this model has several modules: {_named(stacks)}",
                "give slices of each under modules:",
            )
        return (Assigned(only, tuple(stack.role for stack in stacks)),)
    found = tuple(Assigned(one, _stacks_of(recipe, one, stacks)) for one in recipe.modules)
    _check_each(recipe, found, stacks)
    return found


def _stacks_of(recipe: Recipe, module: Module, stacks: Sequence[Layers]) -> tuple[str, ...]:
    fitting = tuple(stack.role for stack in stacks if _is_called(stack, module.name or ""))
    if len(fitting) > 1:
        said = f"the module {module.name} may be one of several: {_named(stacks)}"
        raise _error(recipe, module, said, "write one of these names")
    if not fitting and module.sliced:
        said = f"there are no layers in a module {module.name}: those of this model are {_named(stacks)}"
        raise _error(recipe, module, said, "write models: in it, or one of these names")
    return fitting


def _check_each(recipe: Recipe, found: Sequence[Assigned], stacks: Sequence[Layers]) -> None:
    """Every stack of layers is spoken of once."""
    for stack in stacks:
        speaking = [one.module for one in found if stack.role in one.stacks]
        if len(speaking) > 1:
            said = f"{speaking[0].name} and {speaking[1].name} are the same module"
            raise _error(recipe, speaking[1], said, "give one of them")
        if not speaking:
            said = f"nothing is said of the layers {stack.prefix}*"
            raise _error(recipe, found[0].module, said, f"add the module {_CALLED[stack.role][0]}")


def _is_called(stack: Layers, name: str) -> bool:
    return name in (*_CALLED[stack.role], *stack.path, ".".join(stack.path))


def _named(stacks: Iterable[Layers]) -> str:
    return ", ".join(_CALLED[stack.role][0] for stack in stacks)


def _error(recipe: Recipe, module: Module, problem: str, remedy: str) -> InputError:
    return recipe.place.error(Node(None, module.line), problem, remedy)


@dataclass(frozen=True)
class Owners:
    """Which module of a recipe a tensor outside of all layers belongs to.

    Args:
        found: The modules.
        stacks: Of the first model.
    """

    found: Sequence[Assigned]
    stacks: Sequence[Layers]

    def owns(self, number: int, tensor: str, before: bool) -> bool:
        """Whether a tensor belongs to a module, and comes before its layers or behind them."""
        return before_layers(tensor) is before and self.of(tensor) == number

    def of(self, tensor: str) -> int:
        """Number of the module: the one of that name, the one whose layers lie beside it, or that of text."""
        if len(self.found) == 1:
            return 0
        names = [one.module.name or "" for one in self.found]
        path = tensor.split(".")
        if _BETWEEN.search(tensor) and (between := [n for n in names if _CALLED_BETWEEN in n]):
            return names.index(between[0])
        if called := [name for name in names if name in path or tensor.startswith(f"{name}.")]:
            return names.index(called[0])
        if (beside := self._beside(path)) is not None:
            return beside
        return names.index(_REST) if _REST in names else self._of_text(tensor)

    def _beside(self, path: Sequence[str]) -> int | None:
        """The module whose layers share more of the path than those of all others do."""
        shared = {stack.role: _common(path, stack.path) for stack in self.stacks}
        most = max(shared.values(), default=0)
        roles = [role for role, length in shared.items() if length == most]
        return self._speaking(roles[0]) if most and len(roles) == 1 else None

    def _of_text(self, tensor: str) -> int:
        order = (TEXT, ENCODER, DECODER) if _BEFORE.search(tensor) else (TEXT, DECODER, ENCODER)
        there = [stack.role for stack in self.stacks]
        return next((self._speaking(role) for role in order if role in there), 0)

    def _speaking(self, role: str) -> int:
        return next(number for number, one in enumerate(self.found) if role in one.stacks)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths begin with."""
    pairs = list(zip(one, other, strict=False))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))


def before_layers(name: str) -> bool:
    """Whether a tensor outside of layers comes before them, by its name."""
    return _BEFORE.search(name) is not None
