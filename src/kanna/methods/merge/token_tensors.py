"""Which tensors of a model have a row for each token, and which of them is the embedding, which the head."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.merge.layers import Layers
from kanna.models.names import FileNames

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SIZE, _TEXT = "vocab_size", "text_config"
# Where transformers does not know the model.
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|tok_embeddings|word_embeddings|wte|embed_in|embedding)\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")


@dataclass(frozen=True)
class TokenTensors:
    """Names in the files of a model.

    Args:
        rows: Tensors that have a row for each token.
        embedding: The one that tokens are looked up in; None where that is not known.
        head: The one that logits come from; None where the files hold none.
        lacks_head: Whether the files should hold one.
        parameter: Name of the head in the class of the model; None where it has none.
    """

    rows: frozenset[str]
    embedding: str | None
    head: str | None
    lacks_head: bool = False
    parameter: str | None = None


def token_tensors(model: Checkpoint, layers: Layers | None) -> TokenTensors:
    """By the class of the model: what grows with its vocabulary; by names where there is no such class."""
    from kanna.models.skeleton import skeleton  # takes seconds, and models that are alike do not need it

    try:
        built, larger = skeleton(_config(model, 0)), skeleton(_config(model, 1))
    except InputError:
        return _by_names(model, layers)
    before, after = built.state_dict(), larger.state_dict()
    grown = {name for name, value in before.items() if value.shape != after[name].shape}
    names = FileNames.of(built, model.tensors)
    stored = names.stored
    embedding, head = (_weight(built, getattr(built, get)()) for get in _GETTERS)
    return TokenTensors(
        frozenset(stored[name] for name in grown & stored.keys()),
        names.get(embedding) if embedding in grown else None,
        _named(head, grown, stored),
        head in grown and head != embedding and head not in stored,
        head if head in grown and head != embedding else None,
    )


_GETTERS = ("get_input_embeddings", "get_output_embeddings")


def _named(parameter: str | None, grown: Collection[str], stored: Mapping[str, str]) -> str | None:
    return stored.get(parameter) if parameter is not None and parameter in grown else None


def _weight(built: nn.Module, module: nn.Module | None) -> str | None:
    return next((f"{path}.weight" for path, one in built.named_modules() if one is module), None)


def _config(model: Checkpoint, more: int) -> PretrainedConfig:
    """The model's, with so many tokens more."""
    from kanna.models.skeleton import configured

    config = configured(model.config, f"the configuration of {model.name}")
    text: Any = config.get_text_config()
    sizes = [key for key in text.to_dict() if key.startswith(_SIZE)]
    if not sizes:
        raise InputError("the configuration names no number of tokens", "merge models of text")
    for key in sizes:
        setattr(text, key, getattr(text, key) + more)
    return config


def _by_names(model: Checkpoint, layers: Layers | None) -> TokenTensors:
    outside = [name for name in model.tensors if layers is None or layers.number(name) is None]
    embedding = next((name for name in outside if _EMBEDDING.search(name)), None)
    head = next((name for name in outside if _HEAD.search(name)), None)
    return TokenTensors(frozenset(name for name in (embedding, head) if name is not None), embedding, head)


def with_vocabulary(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A configuration, and those in it, of so many rows."""
    found = {**config}
    if isinstance(inner := config.get(_TEXT), Mapping):
        found[_TEXT] = {**inner, **{key: size for key in inner if key.startswith(_SIZE)}}
    sizes = [key for key in config if key.startswith(_SIZE)]
    return {**found, **dict.fromkeys(sizes if isinstance(inner, Mapping) else (_SIZE, *sizes), size)}
