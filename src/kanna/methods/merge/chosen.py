"""The tokens that an output has where its recipe chooses them, and those of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kanna.checkpoint.reader import Checkpoint, locate, model_name
from kanna.errors import InputError
from kanna.methods.merge.inputs import Inputs
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.templates import with_template
from kanna.methods.merge.tokens import BASE, UNION, TokenizerRule
from kanna.methods.merge.tree import Node
from kanna.methods.merge.vocabulary import Tokenizer, tokenizer_in, tokenizer_of, vocabulary_of


@dataclass(frozen=True)
class Chosen:
    """The tokens of an output.

    Args:
        rule: By which they were chosen.
        tokenizer: That it gets.
        vocabulary: Token -> number.
        of_models: The same for each model.
    """

    rule: TokenizerRule
    tokenizer: Tokenizer
    vocabulary: Mapping[str, int]
    of_models: tuple[Mapping[str, int], ...]

    def to_dict(self) -> dict[str, Any]:
        return {"of": self.tokenizer.name, "tokens": len(self.vocabulary)}


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
    else:
        directory = locate(rule.source)
        tokenizer = tokenizer_in(directory, model_name(rule.source, directory))
        own = _read(tokenizer, directory)
    _refuse_moved(recipe, rule, own, vocabularies, inputs.models)
    return Chosen(rule, tokenizer, own, vocabularies)


def chosen_tokenizer(
    recipe: Recipe, inputs: Inputs, tokens: Chosen | None
) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer that an output gets, None for the first model's; and what there is to know about it."""
    if recipe.template is None:
        return None if tokens is None else tokens.tokenizer, []
    tokenizer = tokenizer_of(inputs.lead) if tokens is None else tokens.tokenizer
    vocabulary = vocabulary_of(tokenizer) if tokens is None else tokens.vocabulary
    return with_template(recipe.template, tokenizer, vocabulary, [tokenizer_of(m) for m in inputs.models])


def _read(tokenizer: Tokenizer, model: object) -> dict[str, int]:
    found = vocabulary_of(tokenizer)
    if found is None:
        place = model.directory if isinstance(model, Checkpoint) else model
        raise InputError(
            f"{place} has no tokenizer.json, vocab.json or vocab.txt, so its tokens are not known",
            "write one first: transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    return found


def _refuse_moved(
    recipe: Recipe,
    rule: TokenizerRule,
    own: Mapping[str, int],
    others: Sequence[Mapping[str, int]],
    models: Sequence[Checkpoint],
) -> None:
    node, remedy = Node(None, rule.line), "merge models that have the same tokens"
    if rule.tokens or rule.multiple > 1:
        said = "rules for single tokens, and padding, are not supported yet"
        raise recipe.place.error(node, said, remedy)
    for model, vocabulary in zip(models, others, strict=True):
        if vocabulary != own:
            said = f"{model.directory} has other tokens than the output, which is not supported yet"
            raise recipe.place.error(node, said, remedy)
