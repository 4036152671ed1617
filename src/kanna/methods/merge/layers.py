"""Which layer a tensor lies in, by its name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NUMBERED = re.compile(r"^((?:[^.]+\.)*?)(\d+)\.")
# What lists of layers are called.
_LAYERS = re.compile(r"(^|\.)(layers?|blocks?|h)\.$")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_OF_DECODER = ("num_decoder_layers", "decoder_layers")
_OF_ENCODER = ("num_encoder_layers", "encoder_layers")
_OF_IMAGES = ("depth", "layers")
TEXT, VISION, AUDIO, ENCODER, DECODER = "text", "vision", "audio", "encoder", "decoder"
# What the names of a stack's tensors, or of its part of a configuration, say of it; the first that fits.
_ROLES = (
    (TEXT, re.compile(r"text|language|llm")),
    (VISION, re.compile(r"vision|visual|vit|image")),
    (AUDIO, re.compile(r"audio|speech")),
    (DECODER, re.compile(r"decoder")),
    (ENCODER, re.compile(r"encoder")),
)
_SECTION = "_config"
# Lists of other things may happen to be as long.
_OF_LAYERS = re.compile(r"layer|block|attn|attention|rope|window|mlp|expert|head|intermediate|sparsity")
# What transformers spreads over the layers, by a pattern, where there is no list of them.
SPREAD = ("attention_types", "max_window_layers")
# Lists of the numbers of layers.
NUMBERS = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "mlp_only_layers",
    "moe_layers",
    "ple_layer_ids",
    "rope_scaling_layers",
    "slstm_at",
)


@dataclass(frozen=True)
class Counted:
    """Where a configuration tells how many layers there are.

    Args:
        section: Key of the configuration within it that says so; empty for the configuration itself.
        key: That says so.
        count: The number.
    """

    section: str
    key: str
    count: int


@dataclass(frozen=True)
class Layers:
    """One stack of layers.

    Args:
        prefix: Of the names of their tensors, before the number.
        count: How many there are.
        role: What the stack is in its model.
        told: Where the configuration says how many there are, the place that counts first.
    """

    prefix: str
    count: int
    role: str = TEXT
    told: tuple[Counted, ...] = field(default=(), compare=False)

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of the prefix."""
        return tuple(self.prefix.split(".")[:-1])

    def name(self, number: int, rest: str) -> str:
        """Of a tensor, by what stands behind the number of its layer."""
        return f"{self.prefix}{number}.{rest}"

    def parts(self, tensor: str) -> tuple[int | None, str]:
        """The number of its layer and what stands behind it; None and all of it outside of layers."""
        number = self.number(tensor)
        return number, tensor if number is None else tensor[len(self.prefix) + len(str(number)) + 1 :]

    def number(self, tensor: str) -> int | None:
        """None for a tensor outside of layers."""
        found = _NUMBERED.match(tensor)
        return int(found[2]) if found is not None and found[1] == self.prefix else None


def stacks_of(config: Mapping[str, Any], tensors: Iterable[str]) -> tuple[Layers, ...]:
    """The stacks of layers of a model: one of most, two where there is a decoder or a tower of images, too.

    Numbered tensors are a stack where the configuration tells as many layers as there are numbers.
    """
    numbers = _numbers(tensors)
    counts = list(_counts(config))
    roles = {prefix: _role_in(prefix, counts) for prefix in numbers}
    found: dict[str, list[Layers]] = {}
    for prefix, seen in numbers.items():
        role = roles[prefix]
        told = _told(role, counts, len(seen)) if seen == set(range(len(seen))) else ()
        if told:
            found.setdefault(role, []).append(Layers(prefix, len(seen), role, told))
    stacks = {role: some[0] for role, some in found.items() if len(some) == 1}
    half = DECODER in stacks and ENCODER in roles.values() and ENCODER not in stacks
    return () if half else tuple(stacks.values())


def _numbers(tensors: Iterable[str]) -> dict[str, set[int]]:
    """What stands before the first number in a name -> all such numbers."""
    found: dict[str, set[int]] = {}
    for name in tensors:
        if (match := _NUMBERED.match(name)) is not None:
            found.setdefault(match[1], set()).add(int(match[2]))
    return found


def all_told(stacks: Sequence[Layers], tensors: Iterable[str]) -> bool:
    """Whether a configuration told of every stack by itself, without the defaults of its kind of model."""
    places = {stack.told[0] for stack in stacks}
    known = {stack.prefix for stack in stacks}
    apart = any(_role(prefix) != TEXT and prefix not in known for prefix in _numbers(tensors))
    return bool(stacks) and len(places) == len(stacks) and not apart


def _counts(config: Mapping[str, Any]) -> Iterator[Counted]:
    """Every number of layers that a configuration, or one in it, tells."""
    for section in ("", *(key for key in config if key.endswith(_SECTION))):
        inner = config.get(section) if section else config
        if isinstance(inner, Mapping):
            for key in (*_OF_DECODER, *_OF_ENCODER, *_COUNTS, *_OF_IMAGES):
                if isinstance(inner.get(key), int) and (section or key not in _OF_IMAGES):
                    yield Counted(section, key, inner[key])


def _role(name: str) -> str:
    return next((role for role, words in _ROLES if words.search(name)), TEXT)


def _role_in(prefix: str, counts: Sequence[Counted]) -> str:
    """Of a stack; where no part of the configuration is of images or sounds alone, all of the model is."""
    role = _role(prefix)
    apart = role not in (VISION, AUDIO) or any(_role(one.section) == role for one in counts if one.section)
    return role if apart else TEXT


def _told(role: str, counts: Sequence[Counted], count: int) -> tuple[Counted, ...]:
    """Places that speak of a stack, and say that it has so many layers."""
    fitting = [one for one in counts if _speaks_of(role, one)]
    own = {DECODER: _OF_DECODER, ENCODER: _OF_ENCODER}.get(role, ())
    closer = [one for one in fitting if one.key in own]
    first = closer or fitting
    if role == DECODER and closer:
        fitting = closer  # the other numbers are the encoder's
    if not any(one.count == count for one in first):
        return ()
    return tuple(dict.fromkeys(one for one in (*first, *fitting) if one.count == count))


def _speaks_of(role: str, told: Counted) -> bool:
    if told.section and _role(told.section) in (VISION, AUDIO):
        return _role(told.section) == role
    other = {DECODER: _OF_ENCODER, ENCODER: _OF_DECODER}.get(role, (*_OF_ENCODER, *_OF_DECODER))
    return role not in (VISION, AUDIO) and told.key not in (*other, *_OF_IMAGES)


def layer_keys(stacks: Iterable[Layers], settled: Mapping[str, Any]) -> set[str]:
    """Keys of a configuration that tell the number of layers, or something of each of them.

    Args:
        settled: The configuration with all defaults.
    """
    found: set[str] = set()
    for stack in stacks:
        for told in stack.told:
            inner = section_of(settled, told.section)
            before = f"{told.section}." if told.section else ""
            keys = (told.key, *_COUNTS, *SPREAD, *NUMBERS, *per_layer(inner, stack.count))
            found |= {f"{before}{key}" for key in keys}
    return found


def section_of(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """A configuration within another, or that itself."""
    inner = config.get(section, {}) if section else config
    return inner if isinstance(inner, Mapping) else {}


def per_layer(section: Mapping[str, Any], count: int) -> list[str]:
    """Keys whose value is a list of one entry for each layer."""
    return [
        key
        for key, value in section.items()
        if isinstance(value, list | tuple)
        and len(value) == count
        and _OF_LAYERS.search(key)
        and key not in NUMBERS
    ]


def layers_of(config: Mapping[str, Any], tensors: Iterable[str]) -> Layers | None:
    """The stack that text goes through, of a model that has one; None where that cannot be told."""
    found = [stack for stack in stacks_of(config, tensors) if stack.role not in (VISION, AUDIO)]
    return found[0] if len(found) == 1 else None


def beyond_told(config: Mapping[str, Any], tensors: Iterable[str]) -> tuple[str, int, int] | None:
    """Layers of which there are more than a configuration tells: prefix, how many there are, and are told."""
    counts = list(_counts(config))
    for prefix, seen in _numbers(tensors).items():
        told = [one.count for one in counts if _speaks_of(_role_in(prefix, counts), one)]
        if _LAYERS.search(prefix) and told and seen == set(range(len(seen))) and max(told) < len(seen):
            return prefix, len(seen), max(told)
    return None


def text_stacks(config: Mapping[str, Any], tensors: Iterable[str]) -> tuple[Layers, ...]:
    """All stacks that text goes through: one, or those of an encoder and a decoder; none where unknown."""
    found = [stack for stack in stacks_of(config, tensors) if stack.role not in (VISION, AUDIO)]
    return tuple(sorted(found, key=lambda stack: stack.role == DECODER))


def position(index: int, count: int) -> float:
    """Of one of several layers: 0 for the first, 1 for the last and for an only one."""
    return index / (count - 1) if count > 1 else 1.0


def counts_in(section: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Keys that say that there are so many layers."""
    return tuple(key for key in (*_COUNTS, *_OF_ENCODER) if section.get(key) == count)
