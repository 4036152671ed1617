"""Tokenizers with tokens of others; text is split as before, but for those that are looked for first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.methods.merge.vocabulary import CONFIG, FAST, Tokenizer

# Of slower programs, which would not know the new tokens.
_SLOW = ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tokenizer.model", "spiece.model")
_DECODER = "added_tokens_decoder"
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
    return {str(one["content"]): {**_PLAIN, **one} for one in (*later.values(), *listed)}


def _with(tokenizer: Tokenizer, added: Sequence[dict[str, Any]], plain: Vocabulary) -> Tokenizer:
    data = tokenizer.data(FAST)
    if not data:
        raise InputError(
            f"the tokenizer of {tokenizer.name} has no tokenizer.json, to which tokens can be added",
            "write it first: transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    model = data["model"]
    if plain and not isinstance(model.get("vocab"), dict):
        raise InputError(
            f"{min(plain, key=lambda one: plain[one])!r} and others cannot be added to the tokenizer of "
            f"{tokenizer.name}, in which each token has a score",
            "take the tokens of one model: tokenizer_source: base, or a model",
        )
    data["added_tokens"] = [*(data.get("added_tokens") or ()), *added]
    if plain:  # all of them: added tokens that the model does not know are numbered behind its own
        marks = {str(one["content"]): int(one["id"]) for one in data["added_tokens"]}
        model["vocab"] = {**model["vocab"], **marks, **plain}
    files: dict[str, Path | str] = {n: held for n, held in tokenizer.files.items() if n not in _SLOW}
    files[FAST] = text = _text(data)
    _check(tokenizer, text, {**plain, **{str(one["content"]): int(one["id"]) for one in added}})
    config = tokenizer.data(CONFIG)
    if _DECODER in config:
        more = {str(one["id"]): {k: v for k, v in one.items() if k != "id"} for one in added}
        config[_DECODER] = {**config[_DECODER], **more}
        files[CONFIG] = _text(config)
    return Tokenizer(tokenizer.name, files)


def _check(tokenizer: Tokenizer, text: str, new: Vocabulary) -> None:
    """Raises InputError where the program that reads the file would give other numbers to new tokens."""
    import tokenizers

    try:
        read = tokenizers.Tokenizer.from_str(text)
    except Exception as error:
        read, said = None, f": {error}"
    else:
        said = ""
    if read is None or any(read.token_to_id(token) != number for token, number in new.items()):
        raise InputError(
            f"tokens cannot be added to the tokenizer of {tokenizer.name}{said}",
            "take the tokens of one model: tokenizer_source: base, or a model",
        )


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
