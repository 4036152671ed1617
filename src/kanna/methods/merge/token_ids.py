"""Numbers of tokens in configurations, where the tokens of an output are not those of its first model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.checked import read_json
from kanna.methods.merge.vocabulary import CONFIG, Tokenizer

GENERATION = "generation_config.json"
_KEY = re.compile(r"^(.*_token)_(ids?|index)$")
_TEXT = "text_config"


@dataclass(frozen=True)
class TokenIds:
    """Translates numbers of tokens.

    Args:
        tokenizer: That the output has.
        vocabulary: Token -> number in the output.
        before: The same for the first model.
        config: Of the model whose tokens the output has; empty where it is not known.
        generation: Its generation_config.json.
    """

    tokenizer: Tokenizer
    vocabulary: Mapping[str, int]
    before: Mapping[str, int]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]

    def in_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The first model's config.json with the numbers of the output."""
        found = self._translated(config, self.config)
        if isinstance(inner := config.get(_TEXT), Mapping):
            theirs = self.config.get(_TEXT)
            found[_TEXT] = self._translated(inner, theirs if isinstance(theirs, Mapping) else {})
        return found

    def in_generation(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The first model's generation_config.json with them."""
        return self._translated(config, self.generation)

    def _translated(self, config: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        keys = [key for key in (*config, *(key for key in theirs if key not in config)) if _KEY.match(key)]
        return {**config, **{key: self._value(key, config.get(key), theirs.get(key)) for key in keys}}

    def _value(self, key: str, value: Any, theirs: Any) -> Any:
        """What the tokenizer says, else the model that it comes from, else the same tokens as before."""
        said = self._said(key)
        if said is not None:
            return theirs if isinstance(theirs, list) and said in theirs else said
        return self._moved(value) if theirs is None else theirs

    def _said(self, key: str) -> int | None:
        matched = _KEY.match(key)
        named = self.tokenizer.data(CONFIG).get(matched[1]) if matched else None
        token = named.get("content") if isinstance(named, Mapping) else named
        return self.vocabulary.get(token) if isinstance(token, str) else None

    def _moved(self, value: Any) -> Any:
        if isinstance(value, list):
            moved = [self._moved(one) for one in value]
            return [one for one in moved if one is not None] or None
        names = [token for token, number in self.before.items() if number == value]
        return self.vocabulary.get(names[0]) if names else None


def generation_of(directory: Path) -> dict[str, Any]:
    """What a generation_config.json says; nothing where there is none."""
    path = directory / GENERATION
    return read_json(path) if path.is_file() else {}
