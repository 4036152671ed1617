"""The models of a recipe, opened by their headers; whatever does not fit together is refused by name."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kanna.checked import read_json
from kanna.checkpoint import lineage
from kanna.checkpoint.location import model_name
from kanna.checkpoint.reader import Checkpoint, refuse_eight_bits, refuse_quantized
from kanna.errors import InputError
from kanna.methods.merge.adapted import adapted
from kanna.methods.merge.layers import Layers, all_told, beyond_told, layer_keys, layers_of, stacks_of
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.references import parsed, place
from kanna.methods.merge.rows import beside_rows
from kanna.methods.merge.vocabulary import tokenizer_of, vocabulary_of

# Keys of a configuration that say nothing of the weights.
_IGNORED = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "architectures",
    "auto_map",
}
# Parts of keys that say what weights mean; others, such as positions and token ids, may differ.
_MEANING = re.compile(
    r"head|rope|rotary|activation|hidden_act|eps|sliding|window|layer_types|expert|norm|softcap|scal|residual"
    r"|hidden_size|intermediate|n_embd|n_inner|num_hidden_layers|n_layer|position_embedding|attention_bias"
)
_AGREE = "merge models that agree in it"
_VOCABULARY = "vocab_size"
_TIED = "tie_word_embeddings"


@dataclass(frozen=True)
class Inputs:
    """Models that fit together.

    Args:
        models: In the order of the recipe.
        first: Index of the one that configuration, tokenizer and side files come from.
        warnings: Where they differ in what does not matter to the weights.
        layers: Of each model, where those of text stand; None where that cannot be told.
        stacks: Of each model, all that it has.
    """

    models: tuple[Checkpoint, ...]
    first: int
    warnings: tuple[str, ...]
    layers: tuple[Layers | None, ...]
    stacks: tuple[tuple[Layers, ...], ...]

    @property
    def lead(self) -> Checkpoint:
        return self.models[self.first]

    def only(self, wanted: Sequence[int]) -> Inputs:
        """Some of the models, by their numbers; the lead is among them."""
        return replace(
            self,
            models=tuple(self.models[index] for index in wanted),
            first=wanted.index(self.first),
            layers=tuple(self.layers[index] for index in wanted),
            stacks=tuple(self.stacks[index] for index in wanted),
        )


def opened(recipe: Recipe, made: Mapping[str, Checkpoint]) -> Inputs:
    """Open all models of a recipe. Reads headers, configurations and tokenizers.

    Args:
        made: Name of a document -> its result.

    Raises:
        InputError: One cannot be read, is quantised, or does not fit the others; model and tensor are named.
    """
    models = tuple(_opened(name, made) for name in recipe.models)
    first = recipe.models.index(recipe.first)
    lead, warnings = models[first], []
    for name, model in zip(recipe.models, models, strict=True):
        if model is not lead:
            tokens = name in recipe.ends and recipe.tokenizer is None
            warnings += _compared(lead, model, recipe.sliced, tokens)
    warnings += [said for model in models for said in _said_of_layers(model)]
    stacks = tuple(stacks_in(model) for model in models)
    layers = tuple(layers_of(model.config, model.tensors) for model in models)
    return Inputs(models, first, tuple(dict.fromkeys(warnings)), layers, stacks)


def stacks_in(model: Checkpoint) -> tuple[Layers, ...]:
    """The stacks of layers of a model; with defaults of its kind where its file does not tell them all."""
    found = stacks_of(model.config, model.tensors)
    return found if all_told(found, model.tensors) else stacks_of(settled(model), model.tensors)


def _said_of_layers(model: Checkpoint) -> list[str]:
    """A warning where layers lie in the files that nobody will load."""
    found = beyond_told(settled(model), model.tensors) if beyond_told(model.config, model.tensors) else None
    if found is None:
        return []
    prefix, there, told = found
    return [
        f"config.json of {model.name} tells of {told} layers, and its files hold {there} ({prefix}*): all "
        f"are merged, but whoever loads the result runs {told}"
    ]


def _opened(name: str, made: Mapping[str, Checkpoint]) -> Checkpoint:
    if name in made:
        return made[name]
    told = parsed(name, made)
    base = made[told.model] if told.model in made else model_opened(told.model, told.revision)
    if told.adapter is None:
        return base
    directory = place(told.adapter, told.adapter_revision)
    known = model_name(told.adapter, directory)
    return adapted(base, directory, known, written=told.model not in made)


def model_opened(name: str, revision: str | None = None) -> Checkpoint:
    """A model without an adapter, if it is of a kind that is merged."""
    checkpoint = Checkpoint.open(name if revision is None else place(name, revision))
    if revision is not None:
        checkpoint = replace(checkpoint, name=f"{name}@{revision}")
    refuse_quantized(checkpoint.config, checkpoint.directory)
    refuse_eight_bits(checkpoint, checkpoint.directory)
    for tensor, stored in checkpoint.tensors.items():
        if stored.dtype.startswith(("F8", "C")):
            raise InputError(
                f"{stored.file} holds {tensor} of dtype {stored.dtype}, which is not merged",
                "start from a model in float32, float16 or bfloat16",
            )
    lineage.verify(checkpoint.directory)
    return checkpoint


def _compared(lead: Checkpoint, other: Checkpoint, sliced: bool, tokens: bool) -> list[str]:
    """Warnings; raises InputError for what does not fit.

    Args:
        sliced: Whether layers are taken by their numbers; then there may be more of them in one model.
        tokens: Whether embeddings are merged, so that tokens must be the same.
    """
    same_architecture(lead, other)
    warnings = _configurations(lead, other, sliced, tokens)
    return warnings + (_tokens(lead, other) if tokens else [])


def same_architecture(lead: Checkpoint, other: Checkpoint) -> None:
    """Raises InputError where classes of models differ."""
    for key in ("model_type", "architectures"):
        if lead.config.get(key) != other.config.get(key):
            raise InputError(
                f"{other.directory} is another architecture than {lead.directory}: {key} is "
                f"{other.config.get(key)!r} there and {lead.config.get(key)!r} here",
                "only models of one architecture are merged",
            )


def same_settings(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether configurations say the same of the weights, so that their defaults need not be known."""
    told = [
        {key: value for key, value in one.config.items() if key not in _IGNORED} for one in (first, second)
    ]
    return told[0] == told[1]


def _configurations(lead: Checkpoint, other: Checkpoint, sliced: bool, tokens: bool) -> list[str]:
    if same_settings(lead, other):
        return []
    mine, theirs = settled(lead), settled(other)
    layered: set[str] = set()
    if sliced:
        layered = layer_keys(stacks_in(lead), mine) | layer_keys(stacks_in(other), theirs)
    flat, flat_theirs = dict(_flat(mine, "")), dict(_flat(theirs, ""))
    warnings = []
    for key in sorted((flat.keys() | flat_theirs.keys()) - layered):
        if flat.get(key) == flat_theirs.get(key) or _ignored(key):
            continue
        said = f"{key} is {flat_theirs.get(key)!r} in {other.name} and {flat.get(key)!r} in {lead.name}"
        leaf = key.rpartition(".")[2]
        if leaf in (_VOCABULARY, _TIED):  # tensors say more
            if leaf == _VOCABULARY and tokens and _shapes(lead) == _shapes(other):
                raise InputError(f"vocabularies differ: {said}", "mend the configuration that is wrong")
            continue
        if leaf.endswith("_token_id") and not tokens:  # the tokenizer that is chosen says them
            continue
        if _MEANING.search(key):
            raise InputError(
                f"the same numbers would mean something else: {said}", "merge models that agree in it"
            )
        warnings.append(f"{said}: the merge has the latter")
    return warnings


def _shapes(model: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in model.tensors.items()}


def _ignored(key: str) -> bool:
    return bool(_IGNORED & set(key.split(".")))


def settled(checkpoint: Checkpoint) -> dict[str, Any]:
    """A configuration with the defaults of transformers; as it is where transformers has none."""
    from transformers import AutoConfig

    try:
        if checkpoint.config == read_json(checkpoint.directory / "config.json"):
            read = AutoConfig.from_pretrained(checkpoint.directory, local_files_only=True).to_dict()
        else:  # of a model that is not written yet
            with tempfile.TemporaryDirectory() as place:
                (Path(place) / "config.json").write_text(json.dumps(dict(checkpoint.config)))
                read = AutoConfig.from_pretrained(place, local_files_only=True).to_dict()
    except Exception:  # code of the model's own, or nothing that transformers knows: by what is written alone
        read = dict(checkpoint.config)
    return dict(read)


def _vocabulary(model: Checkpoint) -> object:
    return settled(model).get(_VOCABULARY)


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def compare_tensors(parts: Sequence[tuple[Checkpoint, str]], tokens: bool = False) -> None:
    """Tensors that are to be merged into one.

    Args:
        tokens: Whether they have a row for each token, of which there may be more in one model.

    Raises:
        InputError: One has another shape than the first, or another kind of numbers.
    """
    (lead, name), *others = parts
    mine = lead.tensors[name]
    for other, called in others:
        theirs = other.tensors[called]
        shapes = [beside_rows(one.shape) if tokens else one.shape for one in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{called} has shape {list(theirs.shape)} in {theirs.file} and {list(mine.shape)} in "
                f"{mine.file}",
                "merge models of one shape; where their tokens differ, say whose the output has: "
                "tokenizer_source: base, union, or a model",
            )
        floating = lead.dtype(name).is_floating_point, other.dtype(called).is_floating_point
        if floating[0] != floating[1] or (not floating[0] and mine.dtype != theirs.dtype):
            raise InputError(
                f"{called} is {theirs.dtype} in {theirs.file} and {mine.dtype} in {mine.file}",
                "models must hold the same kind of numbers",
            )


def _tokens(lead: Checkpoint, other: Checkpoint) -> list[str]:
    """Raises InputError where the same row stands for different tokens."""
    mine, theirs = (vocabulary_of(tokenizer_of(model)) for model in (lead, other))
    if mine is None or theirs is None:
        if not same_settings(lead, other) and _vocabulary(lead) != _vocabulary(other):
            raise InputError(
                f"{lead.directory} and {other.directory} have different numbers of tokens, and not both "
                "a tokenizer.json or vocab.json that says which",
                "add the tokenizer that is missing",
            )
        return [f"no tokenizer.json or vocab.json in both {lead.name} and {other.name}: tokens not compared"]
    if mine == theirs:
        return []
    token = min((mine.items() ^ theirs.items()), key=lambda item: (item[1], item[0]))[0]
    raise InputError(
        f"vocabularies differ: the token {token!r} is number {theirs.get(token)} in {other.directory} and "
        f"{mine.get(token)} in {lead.directory}",
        "say whose tokens the output has: tokenizer_source: base, union, or a model",
    )


def licences(models: Iterable[Checkpoint]) -> dict[str, str]:
    """Name of a model -> its licence as its card says; models whose card says none are left out."""
    from kanna.checkpoint.card import front_matter

    found = {}
    for model in models:
        matter = front_matter(model.directory)
        named = matter.get("license")
        if named == "other" and matter.get("license_name"):
            named = matter["license_name"]
        if named:
            found[model.name] = named if isinstance(named, str) else json.dumps(named)
    return found
