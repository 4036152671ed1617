"""Tokenizers with tokens of others; text is split as before, but for those that are looked for first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.methods.merge.vocabulary import CONFIG, FAST, Tokenizer, vocabulary_of

# Of slower programs, which would not know the new tokens.
_SLOW = ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tokenizer.model", "spiece.model")
_DECODER = "added_tokens_decoder"
# Less than the sum of scores of any text.
_LOST = -1e9
_ONE = "take the tokens of one model: tokenizer_source: base, or a model"
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}

Vocabulary = Mapping[str, int]


def united(
    first: Tokenizer, own: Vocabulary, others: Iterable[tuple[Tokenizer, Vocabulary]]
) -> tuple[Tokenizer, Vocabulary]:
    """A tokenizer with the tokens of others behind its own, in their order.

    Raises:
        InputError: It has no tokenizer.json, or is of a kind that takes no single tokens more.
    """
    found, added, plain = dict(own), [], {}
    end = max(own.values(), default=-1)
    for tokenizer, vocabulary in others:
        settings = added_tokens(tokenizer)
        for token in sorted(vocabulary.keys() - found.keys(), key=lambda one: vocabulary[one]):
            found[token] = end = end + 1
            if token in settings:
                added.append({**settings[token], "id": found[token]})
            else:
                plain[token] = found[token]
    return (_with(first, added, plain), found) if added or plain else (first, own)


def extended(
    tokenizer: Tokenizer, own: Vocabulary, tokens: Sequence[str], donors: Iterable[Tokenizer]
) -> tuple[Tokenizer, Vocabulary]:
    """A tokenizer with single tokens more, as they are in others where they have them.

    Raises:
        InputError: It has no tokenizer.json.
    """
    if not tokens:
        return tokenizer, own
    known: dict[str, dict[str, Any]] = {}
    for donor in donors:
        known = {**added_tokens(donor), **known}
    first = max(own.values(), default=-1) + 1
    found = {**own, **{token: first + place for place, token in enumerate(tokens)}}
    added = [{**known.get(token, {**_PLAIN, "content": token}), "id": found[token]} for token in tokens]
    return _with(tokenizer, added, {}), found


def added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Tokens that are looked for before a text is split -> how."""
    later = tokenizer.data(CONFIG).get(_DECODER) or {}
    listed = tokenizer.data(FAST).get("added_tokens") or ()
    every = [*({**one, "id": int(number)} for number, one in later.items()), *listed]
    known = (*_PLAIN, "content", "id")
    return {str(one["content"]): {**_PLAIN, **{k: one[k] for k in known if k in one}} for one in every}


def _with(tokenizer: Tokenizer, added: Sequence[dict[str, Any]], plain: Vocabulary) -> Tokenizer:
    """A tokenizer with more tokens: such as are looked for first, and plain ones."""
    data = tokenizer.data(FAST)
    if not data:
        raise InputError(
            f"the tokenizer of {tokenizer.name} has no tokenizer.json, to which tokens can be added",
            "write it first: transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    listed = sorted([*added_tokens(tokenizer).values(), *added], key=lambda one: int(one["id"]))
    files: dict[str, Path | str] = {n: held for n, held in tokenizer.files.items() if n not in _SLOW}
    files[FAST] = _fast(tokenizer, {**data, "added_tokens": listed}, plain, len(added))
    config = tokenizer.data(CONFIG)
    if _DECODER in config:
        more = {str(one["id"]): {k: v for k, v in one.items() if k != "id"} for one in added}
        config[_DECODER] = {**config[_DECODER], **more}
        files[CONFIG] = _text(config)
    return Tokenizer(tokenizer.name, files)


def _fast(tokenizer: Tokenizer, data: dict[str, Any], plain: Vocabulary, more: int) -> str:
    """The text of a tokenizer.json that gives all tokens their numbers.

    Marks that the model itself does not know are numbered behind its own tokens by whoever reads the file,
    whatever it says; so they become tokens of the model where that would be wrong.
    """
    model = data["model"]
    marks = {str(one["content"]): int(one["id"]) for one in data["added_tokens"]}
    expected = {**(vocabulary_of(tokenizer) or {}), **plain, **marks}
    tried = [] if plain else [data]
    if (more_tokens := _larger(model.get("vocab"), {**marks, **plain})) is not None:
        tried.append({**data, "model": {**model, "vocab": more_tokens}})
    for one in tried:
        if (read := _read(text := _text(one))) is not None and read.get_vocab() == expected:
            return text
    raise InputError(f"{len(plain) + more} tokens cannot be added to the tokenizer of {tokenizer.name}", _ONE)


def _larger(own: Any, tokens: Vocabulary) -> Any:
    """The tokens of a tokenizer's model with others; None where they cannot be numbered so.

    Where each has a score, and the best sum of scores splits a text, the new ones get one that loses always.
    """
    if isinstance(own, dict):
        return {**own, **tokens}
    if not isinstance(own, list):
        return None
    behind = sorted((number, token) for token, number in tokens.items() if number >= len(own))
    return [*own, *([token, _LOST] for _, token in behind)]


def _read(text: str) -> Any:
    """The tokenizer of a text; None where it is none."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception:
        return None


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
