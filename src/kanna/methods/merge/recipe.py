"""What a recipe in mergekit's YAML says, as typed data; `reading` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kanna.errors import InputError, suggestion
from kanna.methods.merge import known
from kanna.methods.merge.settings import Setting
from kanna.methods.merge.tokens import TokenizerRule
from kanna.methods.merge.tree import Place


@dataclass(frozen=True)
class Source:
    """A model that is merged.

    Args:
        model: As the recipe names it.
        parameters: Its own.
        line: Where it stands.
        layers: The first of its layers that are taken, and the one behind the last; None for all.
    """

    model: str
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    line: int = 0
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Slice:
    """Layers of the output that lie behind one another, and what they are merged from.

    Args:
        sources: The models, each with as many layers as the others.
        base: Name of the base model; None without one.
        shared: Parameters of all its models; those that stand closer to it come first.
        line: Where it stands.
    """

    sources: tuple[Source, ...]
    base: str | None
    shared: tuple[Mapping[str, Setting], ...]
    line: int = 0

    @property
    def base_index(self) -> int:
        """Where the base stands among the sources; -1 where it does not."""
        names = [source.model for source in self.sources]
        return names.index(self.base) if self.base in names else -1

    @property
    def settings(self) -> list[tuple[str, Setting]]:
        """All parameters that are given for it."""
        given = (*self.shared, *(source.parameters for source in self.sources))
        return [item for parameters in given for item in parameters.items()]


@dataclass(frozen=True)
class Module:
    """A part of a model with layers of its own, such as a decoder or a tower of images.

    Args:
        name: As the recipe calls it; None for the whole model.
        slices: From its first layer to its last.
        line: Where it stands.
    """

    name: str | None
    slices: tuple[Slice, ...]
    line: int = 0

    @property
    def sliced(self) -> bool:
        """Whether ranges of layers are given."""
        return self.slices[0].sources[0].layers is not None


@dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Args:
        place: Where it comes from.
        method: Name of the method.
        modules: One for the whole model, or several. With `models:` it has one slice of all layers, whose
            base that is not among the models comes first in it.
        base: Name of the base model; None without one.
        dtype: Of the output; None for the widest of the inputs.
        warnings: What of it changes nothing.
        document: As it was read.
        line: Where it begins.
        name: By which other documents of the file take its result; None without one.
        tokenizer: Which tokens it has; None for those of all its models.
        template: How it writes conversations, see `templates`; None for what its tokenizer says.
    """

    place: Place
    method: str
    modules: tuple[Module, ...]
    base: str | None
    dtype: str | None
    warnings: tuple[str, ...]
    document: Mapping[str, Any]
    line: int = 0
    name: str | None = None
    tokenizer: TokenizerRule | None = None
    template: str | None = None

    @property
    def rule(self) -> known.Method:
        return known.METHODS[self.method]

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Of all modules."""
        return tuple(one for module in self.modules for one in module.slices)

    @property
    def sliced(self) -> bool:
        """Whether ranges of layers are given, of some module at least."""
        return any(module.sliced for module in self.modules)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model, as the recipe names it; a base that nothing is taken from comes first."""
        sources = [source.model for one in self.slices for source in one.sources]
        bases = [] if self.base is None or self.base in sources else [self.base]
        return tuple(dict.fromkeys((*bases, *sources)))

    @property
    def ends(self) -> tuple[str, ...]:
        """Models whose embeddings, final norms and heads are merged."""
        slices = [one for module in self.modules for one in (module.slices[0], module.slices[-1])]
        found = [source.model for one in slices for source in one.sources]
        return tuple(dict.fromkeys(found))

    @property
    def first(self) -> str:
        """The model that configuration, tokenizer and all else that is not merged come from."""
        return self.slices[0].sources[0].model if self.base is None else self.base


def dtype_named(name: str, error: Any = InputError) -> str:
    """A dtype that an output may have.

    Args:
        error: Makes the error of (problem, remedy).

    Raises:
        InputError: It is none.
    """
    plain = name.removeprefix("torch.")
    if plain not in known.DTYPES:
        raise error(f"there is no dtype {name!r}{suggestion(plain, known.DTYPES)}", "write bfloat16")
    return plain
