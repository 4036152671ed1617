"""The rows of each tensor that has one for each token, by what a recipe says of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kanna.methods.merge.chosen import Chosen
from kanna.methods.merge.heads import Ends
from kanna.methods.merge.inputs import Inputs
from kanna.methods.merge.layout import Part, Target
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.rows import Row, Rows, indexed, padded, rows_in, unmoved
from kanna.methods.merge.tokens import TokenRule
from kanna.methods.merge.tree import Node


def rows_of(
    recipe: Recipe, inputs: Inputs, ends: Ends | None, tokens: Chosen | None, target: Target
) -> Rows | None:
    """None where a tensor has no rows of tokens, or they stay as they are in all its parts.

    Raises:
        InputError: A rule for a row that is not there.
    """
    if ends is None or target.name not in ends.tensors.rows | {ends.tensors.head}:
        return None
    counts = [rows_in(inputs.models[part.model].shape(part.tensor)) for part in target.parts]
    if tokens is None:
        parts = [
            Row(part.model, part.tensor, count) for part, count in zip(target.parts, counts, strict=True)
        ]
        return padded(parts, max(0, target.slice.base_index))
    rows = _Mapped(recipe, inputs, ends, tokens, target).rows()
    return None if unmoved(rows, counts) else rows


@dataclass(frozen=True)
class _Mapped:
    """Rows of one tensor by the tokens that they stand for."""

    recipe: Recipe
    inputs: Inputs
    ends: Ends
    tokens: Chosen
    target: Target

    def rows(self) -> Rows:
        parts = [self._held(part) for part in self.target.parts]
        forced = frozenset(token for token, rule in self.tokens.rule.tokens.items() if rule.force)
        lacking = {
            token: row
            for token, row in self.tokens.vocabulary.items()
            if token in forced or not all(token in held for held in parts)
        }
        defaults = {row: self._default(token) for token, row in lacking.items()}
        return indexed(self.tokens.size, self.tokens.vocabulary, parts, defaults, forced)

    def _default(self, token: str) -> tuple[Row, ...]:
        """What stands for a token where a part lacks it: the base's row, or the mean of all that have it."""
        if token in self.tokens.rule.tokens:
            return self._ruled(token, self.tokens.rule.tokens[token])
        found = [Row(part.model, part.tensor, held[token]) for part, held in self._sources if token in held]
        base = self.target.slice.base
        first = [row for row in found if base is not None and self.recipe.models[row.model] == base]
        return tuple(first or found or self._elsewhere(token))

    def _elsewhere(self, token: str) -> list[Row]:
        """Its rows in models that this tensor is not made from, such as those of other slices."""
        parts = [part for model in range(len(self.inputs.models)) if (part := self._part(model)) is not None]
        held = [(part, self._held(part)) for part in parts]
        return [Row(part.model, part.tensor, tokens[token]) for part, tokens in held if token in tokens]

    def _ruled(self, token: str, rule: TokenRule) -> tuple[Row, ...]:
        if rule.model is None:
            return ()
        model = self.recipe.models.index(rule.model)
        part, name = self._part(model), rule.token or token
        held = {} if part is None else self._held(part)
        number = held.get(name) if rule.number is None else rule.number
        if part is None or number is None or number >= rows_in(self.inputs.models[model].shape(part.tensor)):
            which = repr(name) if rule.number is None else f"number {rule.number}"
            said = f"the rule of {token!r}: {rule.model} has no token {which} in {self.target.name}"
            raise self.recipe.place.error(Node(None, rule.line), said, "name a token that the model has")
        return (Row(model, part.tensor, number),)

    def _part(self, model: int) -> Part | None:
        """This tensor in a model; its embedding where that is its head."""
        tensors = self.inputs.models[model].tensors
        names = [part.tensor for part in self.target.parts if part.model == model]
        names += [self.target.name, self.ends.tensors.embedding or ""]
        return next((Part(model, name) for name in names if name in tensors), None)

    def _held(self, part: Part) -> Mapping[str, int]:
        """Tokens that have a row in a part."""
        count = rows_in(self.inputs.models[part.model].shape(part.tensor))
        tokens = self.tokens.of_models[part.model]
        return {token: row for token, row in tokens.items() if row < count}

    @cached_property
    def _sources(self) -> list[tuple[Part, Mapping[str, int]]]:
        """The parts, and the base where it is none of them; with the tokens that have a row there."""
        base = self.target.slice.base
        found = [(part, self._held(part)) for part in self.target.parts]
        if base is not None and self.target.slice.base_index < 0:
            part = self._part(self.recipe.models.index(base))
            found += [] if part is None else [(part, self._held(part))]
        return found
