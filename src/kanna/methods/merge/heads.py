"""Models that differ at their ends: in the tokens of the embedding, or in having a head of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.merge.chosen import Chosen
from kanna.methods.merge.inputs import Inputs, same_settings, settled
from kanna.methods.merge.layout import Heads
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.rows import Rows, rows_in
from kanna.methods.merge.token_tensors import TokenTensors, token_tensors, with_vocabulary

_TIED, _TEXT = "tie_word_embeddings", "text_config"
_NAMED = 3


@dataclass(frozen=True)
class Ends:
    """What stands before and behind the layers, of models that are not alike there.

    Args:
        tensors: Of which there is a row for each token.
        heads: Embeddings that serve as heads; None where there are none.
        own_head: Whether the output has a head of its own though some model has none.
        warnings: What a user should know.
    """

    tensors: TokenTensors
    heads: Heads | None
    own_head: bool
    warnings: tuple[str, ...]


def ends_of(recipe: Recipe, inputs: Inputs, moved: bool) -> Ends | None:
    """None where all models are alike.

    Args:
        moved: Whether rows may not stay where they are.

    Raises:
        InputError: A model lacks the head that it says it has.
    """
    indexes = [recipe.models.index(name) for name in dict.fromkeys((recipe.first, *recipe.ends))]
    if not moved and _alike(inputs, indexes):
        return None
    tied = {index: ties(inputs.models[index]) for index in indexes}
    apart = next((index for index in indexes if not tied[index]), indexes[0])
    found = token_tensors(inputs.models[apart], inputs.layers[apart])
    if found.lacks_head and not tied[apart]:
        raise InputError(
            f"{inputs.models[apart].directory} says that it has a head of its own, and holds none",
            "fetch the model again, or mend tie_word_embeddings in its config.json",
        )
    serving = _serving(inputs, tied, found)
    heads = None if found.head is None or not serving else Heads(found.head, serving)
    own = heads is not None and not all(tied.values())
    return Ends(found, heads, own, _said(inputs, tied, heads) if own else ())


def _alike(inputs: Inputs, indexes: Sequence[int]) -> bool:
    """Whether models have the same outside of their layers, and the same of them as a head."""
    models = [inputs.models[index] for index in indexes]
    if len({_outside(inputs, index) for index in indexes}) > 1:
        return False
    return all(same_settings(models[0], one) for one in models) or len(set(map(ties, models))) == 1


def _outside(inputs: Inputs, index: int) -> frozenset[tuple[str, tuple[int, ...]]]:
    """All that a model has outside of its layers."""
    model, layers = inputs.models[index], inputs.layers[index]
    return frozenset(
        (name, stored.shape)
        for name, stored in model.tensors.items()
        if layers is None or layers.number(name) is None
    )


def ties(model: Checkpoint) -> bool:
    """Whether a model says that its head is its embedding."""
    whole = settled(model)
    inner = whole.get(_TEXT)
    return bool(whole.get(_TIED, inner.get(_TIED) if isinstance(inner, Mapping) else False))


def _serving(inputs: Inputs, tied: Mapping[int, bool], found: TokenTensors) -> dict[int, str]:
    """Models whose embedding serves as the head that others have -> name of that embedding."""
    if found.head is None or found.embedding is None:
        return {}
    apart = not all(tied.values())
    some = any(found.head in inputs.models[index].tensors for index in tied)
    return {
        index: found.embedding
        for index, one in tied.items()
        if one and some and (apart or found.head not in inputs.models[index].tensors)
    }


def _said(inputs: Inputs, tied: Mapping[int, bool], heads: Heads | None) -> tuple[str, ...]:
    without = ", ".join(inputs.models[index].name for index in sorted(heads.serving if heads else ()))
    own = ", ".join(inputs.models[index].name for index, one in tied.items() if not one)
    return (f"{own} has a head of its own, as the merge then has; of {without} the embedding serves as head",)


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that says that the head is no embedding."""
    found = {**config, _TIED: False}
    if isinstance(inner := config.get(_TEXT), Mapping) and _TIED in inner:
        found[_TEXT] = {**inner, _TIED: False}
    return found


def at_the_ends(config: Mapping[str, Any], ends: Ends | None, tokens: Chosen | None) -> dict[str, Any]:
    """A configuration with the numbers of rows and tokens, and whether there is a head of its own."""
    found = dict(config) if tokens is None else with_vocabulary(config, tokens.size)
    if tokens is not None and tokens.ids is not None:
        found = tokens.ids.in_config(found)
    return untied(found) if ends is not None and ends.own_head else found


def said_of_ends(inputs: Inputs, ends: Ends | None, tokens: Chosen | None, rows: Rows | None) -> list[str]:
    """What a user should know of them.

    Args:
        rows: Of the embedding; None where they stay as they are.
    """
    if ends is None:
        return []
    found = list(ends.warnings)
    if tokens is not None and tokens.added:
        found.append(f"tokens are added that only their rules name: {', '.join(map(repr, tokens.added))}")
    if tokens is not None and rows is not None:
        zeros = {row for row, sources in rows.defaults.items() if not sources}
        known = tokens.rule.tokens
        lost = [token for token, row in tokens.vocabulary.items() if row in zeros and token not in known]
        if lost:
            named = ", ".join(map(repr, lost[:_NAMED])) + (" and others" if len(lost) > _NAMED else "")
            found.append(f"no model has a row for the tokens {named} ({len(lost)}): zeros stand there")
        stored = inputs.lead.tensors.get(ends.tensors.embedding or "")
        if stored is not None and rows_in(stored.shape) > tokens.size:
            found.append(
                f"{inputs.lead.name} has {rows_in(stored.shape)} rows, and the merge has {tokens.size}, one "
                "for each token; pad_to_multiple_of keeps more"
            )
    return found
