"""The rows of each tensor that has one for each token, by what a recipe says of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kanna.methods.merge.chosen import Chosen
from kanna.methods.merge.heads import Ends
from kanna.methods.merge.inputs import Inputs
from kanna.methods.merge.layout import Part, Target
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.rows import NONE, Row, Rows, cut, padded, rows_in, unmoved
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
        name = target.name if target.name in inputs.lead.tensors else ends.tensors.embedding or target.name
        return padded(counts, Row(inputs.first, name, rows_in(inputs.lead.shape(name))))
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
        rules, vocabulary = self.tokens.rule.tokens, self.tokens.vocabulary
        forced = [vocabulary[token] for token, rule in rules.items() if rule.force]
        own = [self._numbers(part).clone() for part in self.target.parts]
        for numbers in own:
            numbers[forced] = NONE
        lacking = torch.stack(own).eq(NONE).any(0).nonzero().flatten().tolist()
        named = [(row, self.tokens.by_row[row]) for row in lacking]
        return Rows(tuple(own), {row: self._default(row, token) for row, token in named if token is not None})

    def _numbers(self, part: Part) -> Tensor:
        """The row of each token in a part; a tokenizer may have more tokens than there are rows."""
        return cut(self.tokens.numbers[part.model], self._count(part))

    def _count(self, part: Part) -> int:
        return rows_in(self.inputs.models[part.model].shape(part.tensor))

    @cached_property
    def _sources(self) -> list[list[tuple[Part, list[int]]]]:
        """Where the row of a token is looked for, with its numbers there: base, parts, all models."""
        base, models = self.target.slice.base, range(len(self.inputs.models))
        found = [part for model in models if (part := self._part(model)) is not None]
        first = [part for part in found if self.recipe.models[part.model] == base]
        return [
            [(part, self._numbers(part).tolist()) for part in parts]
            for parts in (first, self.target.parts, found)
        ]

    def _default(self, row: int, token: str) -> tuple[Row, ...]:
        """What stands for a token where a part lacks it: the first kind of source that has it."""
        if token in self.tokens.rule.tokens:
            return self._ruled(token, self.tokens.rule.tokens[token])
        for parts in self._sources:
            there = [Row(p.model, p.tensor, numbers[row]) for p, numbers in parts if numbers[row] != NONE]
            if there:
                return tuple(there)
        return ()

    def _ruled(self, token: str, rule: TokenRule) -> tuple[Row, ...]:
        if rule.model is None:
            return ()
        model = self.recipe.models.index(rule.model)
        part, name = self._part(model), rule.token or token
        number = self.tokens.of_models[model].get(name) if rule.number is None else rule.number
        if part is None or number is None or number >= self._count(part):
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
