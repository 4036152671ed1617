"""The tokens that an output has where its recipe chooses them, and those of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.checked import read_json
from kanna.checkpoint.location import locate, model_name
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.merge.inputs import Inputs
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.rows import NONE
from kanna.methods.merge.templates import with_template
from kanna.methods.merge.token_ids import TokenIds, generation_of
from kanna.methods.merge.tokens import BASE, UNION, TokenizerRule
from kanna.methods.merge.tree import Node
from kanna.methods.merge.unions import extended, united
from kanna.methods.merge.vocabulary import Tokenizer, tokenizer_in, tokenizer_of, vocabulary_of


@dataclass(frozen=True)
class Chosen:
    """The tokens of an output.

    Args:
        rule: By which they were chosen.
        tokenizer: That it gets.
        vocabulary: Token -> number.
        of_models: The same for each model.
        ids: Numbers of tokens in configurations; None where they are those of the first model.
        added: Tokens that only the rule names.
    """

    rule: TokenizerRule
    tokenizer: Tokenizer
    vocabulary: Mapping[str, int]
    of_models: tuple[Mapping[str, int], ...]
    ids: TokenIds | None
    added: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many rows there are: one for each token, up to a multiple."""
        count = max(self.vocabulary.values(), default=-1) + 1
        return -(-count // self.rule.multiple) * self.rule.multiple

    @cached_property
    def by_row(self) -> list[str | None]:
        """The token of each row; None for rows that stand for none."""
        found: list[str | None] = [None] * self.size
        for token, row in self.vocabulary.items():
            found[row] = token
        return found

    @cached_property
    def numbers(self) -> tuple[Tensor, ...]:
        """Of each row's token in each model; -1 where it has none."""
        return tuple(
            torch.tensor([NONE if token is None else own.get(token, NONE) for token in self.by_row])
            for own in self.of_models
        )

    def to_dict(self) -> dict[str, Any]:
        return {"of": self.tokenizer.name, "tokens": len(self.vocabulary), "rows": self.size}


def chosen(recipe: Recipe, inputs: Inputs) -> Chosen | None:
    """None where the recipe chooses nothing.

    Raises:
        InputError: A tokenizer that cannot be read; a rule for a model or a token that is not there.
    """
    rule = recipe.tokenizer
    if rule is None:
        return None
    for token, one in rule.tokens.items():
        if one.model is not None and one.model not in recipe.models:
            said = f"the rule of {token!r} names {one.model}, which is none of the models that are merged"
            raise recipe.place.error(Node(None, one.line), said, f"name one of {', '.join(recipe.models)}")
    tokenizers = [tokenizer_of(model) for model in inputs.models]
    vocabularies = tuple(_read(one, model) for one, model in zip(tokenizers, inputs.models, strict=True))
    if rule.source in (BASE, UNION, *recipe.models):
        index = inputs.first if rule.source in (BASE, UNION) else recipe.models.index(rule.source)
        tokenizer, own = tokenizers[index], vocabularies[index]
        origin: Checkpoint | Path = inputs.models[index]
    else:
        directory = origin = locate(rule.source)
        tokenizer = tokenizer_in(directory, model_name(rule.source, directory))
        own = _read(tokenizer, directory)
    if rule.source == UNION:
        others = [index for index in range(len(tokenizers)) if index != inputs.first]
        tokenizer, own = united(tokenizer, own, [(tokenizers[one], vocabularies[one]) for one in others])
    donors = [tokenizers[recipe.models.index(name)] for name in rule.models]
    added = tuple(token for token in rule.tokens if token not in own)
    tokenizer, own = extended(tokenizer, own, added, donors)
    ids = None
    if origin is not inputs.lead:
        config, place = (
            (origin.config, origin.directory) if isinstance(origin, Checkpoint) else _beside(origin)
        )
        ids = TokenIds(tokenizer, own, vocabularies[inputs.first], config, generation_of(place))
    return Chosen(rule, tokenizer, own, vocabularies, ids, added)


def _beside(directory: Path) -> tuple[Mapping[str, Any], Path]:
    """The configuration beside a tokenizer, if there is one."""
    path = directory / "config.json"
    return (read_json(path) if path.is_file() else {}), directory


def chosen_tokenizer(
    recipe: Recipe, inputs: Inputs, tokens: Chosen | None
) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer that an output gets, None for the first model's; and what there is to know about it."""
    if recipe.template is None:
        return None if tokens is None else tokens.tokenizer, []
    tokenizer = tokenizer_of(inputs.lead) if tokens is None else tokens.tokenizer
    vocabulary = vocabulary_of(tokenizer) if tokens is None else tokens.vocabulary
    return with_template(recipe.template, tokenizer, vocabulary, [tokenizer_of(m) for m in inputs.models])


def _read(tokenizer: Tokenizer, model: object) -> Mapping[str, int]:
    found = vocabulary_of(tokenizer)
    if found is None:
        place = model.directory if isinstance(model, Checkpoint) else model
        raise InputError(
            f"{place} has no tokenizer.json, vocab.json or vocab.txt, so its tokens are not known",
            "write one first: transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    return found
