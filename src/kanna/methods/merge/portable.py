"""A recipe without the places of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kanna.checkpoint.location import model_name
from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.references import joined

_MODELS = ("model", "base_model", "tokenizer_source", "source")


def portable(plan: MergePlan) -> dict[str, Any]:
    """The recipe, with base names in the place of paths."""
    names = {given: model.name for given, model in zip(plan.recipe.models, plan.inputs.models, strict=True)}
    named = _named(plan.recipe.document, names)
    assert isinstance(named, dict)
    return named


def _named(value: Any, names: Mapping[str, str]) -> Any:
    """What a recipe holds, with other names in the fields of models."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: _name(item, names) if key in _MODELS and _is_name(item) else _named(item, names)
        for key, item in value.items()
    }


def _is_name(item: object) -> bool:
    """Whether it is a model, and no rule of a token."""
    by_parts = isinstance(item, Mapping) and "kind" not in item
    return isinstance(item, str | Path) or by_parts


def _name(given: object, names: Mapping[str, str]) -> str:
    """Of a model that is merged, or of one that only a tokenizer comes from."""
    text = joined(given if isinstance(given, Mapping) else str(given))
    path = Path(text).expanduser()
    return names.get(text) or (model_name(text, path) if path.is_dir() else text)
