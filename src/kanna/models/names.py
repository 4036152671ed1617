"""Which name a parameter has in the files, as transformers resolves it when it loads them.

A checkpoint saved from the base model lacks the prefix that a model with a head puts before it, and the
other way round: ``h.0.attn.c_attn.weight`` is ``transformer.h.0.attn.c_attn.weight`` in GPT2LMHeadModel.
Classes that changed since their weights were published rename: ``language_model.model.layers.0`` in the
files of Gemma 3 is ``model.language_model.layers.0`` in its class. Stacked experts are made of many tensors
of other names.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class FileNames:
    """Names in the class of a model and names in its files.

    Args:
        stored: Full parameter name -> its name in the files.
        made: Parameters that transformers makes of tensors of other shapes, such as stacked experts.
        tied: Parameter -> the one that it shares its storage with.
        ignored: Regular expressions of parameters that need not be in the files.
        expected: Every name in the model's state.
    """

    stored: Mapping[str, str]
    made: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    expected: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, files: Collection[str]) -> "FileNames":
        """Resolve the names of `files` for a dense model, whose weights may be on the meta device."""
        state = model.state_dict()
        stored, made = _resolved(model, state, files)
        return cls(
            stored=stored,
            made=made,
            tied=dict(getattr(model, "all_tied_weights_keys", None) or {}),
            ignored=tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ()),
            expected=frozenset(state),
        )

    def get(self, parameter: str) -> str | None:
        """The name in the files of a parameter; None where they lack it. Of tied ones any that is there."""
        return self.stored.get(parameter) or next(
            (self.stored[other] for other in self._tied_with(parameter) if other in self.stored), None
        )

    def module(self, path: str) -> str | None:
        """The path under which the files hold a module, dense or in a form; None where they lack it."""
        name = self.stored.get(f"{path}.weight")
        return None if name is None else name.removesuffix(".weight")

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """What a model needs and the files do not hold: transformers would fill it at random."""
        return tuple(
            name
            for name in sorted(self.expected - self.made)
            if self.get(name) is None and not any(re.search(pattern, name) for pattern in self.ignored)
        )

    def _tied_with(self, parameter: str) -> Iterable[str]:
        source = self.tied.get(parameter, parameter)
        return (source, *(target for target, of in self.tied.items() if of == source))


def _resolved(
    model: nn.Module, state: Mapping[str, Tensor], files: Collection[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """(parameter -> name in the files, parameters that are made of other tensors)."""
    # Not above: transformers imports this file while it is itself being imported.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    prefix = str(getattr(model, "base_model_prefix", ""))
    mapping = get_model_conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    stored: dict[str, str] = {}
    made: set[str] = set()
    for name in sorted(files):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if pattern is None:
            stored.setdefault(target, name)
        else:
            made |= {_other(target, converter, other) for converter, other in _targets(converters, pattern)}
    return stored, frozenset(made)


def _targets(converters: Iterable[Any], pattern: str) -> list[tuple[Any, str]]:
    """The converter of a pattern, with each of the endings that it makes."""
    found = next(entry for entry in converters if pattern in entry.source_patterns)
    return [(found, other) for other in found.target_patterns]


def _other(target: str, converter: Any, ending: str) -> str:
    """What a converter makes beside `target`, which ends as its first pattern."""
    first: str = converter.target_patterns[0]
    return target.replace(first, ending)


def tensor_name(name: str, available: Collection[str], base_model_prefix: str) -> str | None:
    """The name in `available` of the module `name` of a class with or without its head; None where absent.

    Args:
        name: Path in the class of ``architectures[0]``.
        available: Names that exist, such as those of the modules of another class.
        base_model_prefix: The class's ``base_model_prefix``, without a dot; may be empty.
    """
    return next((alias for alias in aliases(name, base_model_prefix) if alias in available), None)


def aliases(name: str, prefix: str) -> tuple[str, ...]:
    """The name itself, then without or with the prefix of the base model."""
    if not prefix:
        return (name,)
    dotted = f"{prefix}."
    return (name, name.removeprefix(dotted) if name.startswith(dotted) else dotted + name)
