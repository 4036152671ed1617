"""Which tokens a model has, and the files that say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kanna.checked import FETCH_AGAIN, read_json
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError

FAST, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
# Of tokenizers in all formats, with the templates of chats.
_PATTERNS = (
    "tokenizer*.json",
    "tokenization_*.py",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "vocab-*",
    "merges.txt",
    "dict.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*",
)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that lies somewhere, or will.

    Args:
        name: Of the model that it comes from.
        files: Name below a model's directory -> where it lies, or what it will hold.
    """

    name: str
    files: Mapping[str, Path | str]

    def text(self, name: str) -> str | None:
        """What a file holds; None where there is none of that name.

        Raises:
            InputError: It is not UTF-8.
        """
        found = self.files.get(name)
        if not isinstance(found, Path):
            return found
        try:
            return found.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{found} is not UTF-8: {error}", "fetch it again") from error

    def data(self, name: str) -> dict[str, Any]:
        """The JSON object in a file; empty where there is none of that name."""
        found = self.files.get(name)
        if isinstance(found, Path):
            return read_json(found)
        read = {} if found is None else json.loads(found)
        assert isinstance(read, dict)
        return read


@dataclass(frozen=True)
class Foretold(Checkpoint):
    """A model that is not written yet.

    Args:
        tokenizer: That it will have.
    """

    tokenizer: Tokenizer


def tokenizer_of(model: Checkpoint) -> Tokenizer:
    """The tokenizer of a model, by its files."""
    return model.tokenizer if isinstance(model, Foretold) else tokenizer_in(model.directory, model.name)


def tokenizer_in(directory: Path, name: str) -> Tokenizer:
    """The tokenizer in a directory, which may hold nothing else of a model."""
    found = {
        path.relative_to(directory).as_posix(): path
        for path in sorted((*directory.glob("*"), *directory.glob("additional_chat_templates/*")))
        if path.is_file()
    }
    return Tokenizer(name, {name: path for name, path in found.items() if belongs(name)})


def belongs(name: str) -> bool:
    """Whether a file is part of a tokenizer."""
    patterns = [pattern for pattern in _PATTERNS if pattern.count("/") == name.count("/")]
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def vocabulary_of(tokenizer: Tokenizer) -> dict[str, int] | None:
    """Token -> number; None where there is no file that says it plainly.

    Raises:
        InputError: A file of the tokenizer holds something else than tokens.
    """
    try:
        return _vocabulary(tokenizer)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        said = f"the files of the tokenizer of {tokenizer.name} hold something else than tokens"
        raise InputError(f"{said}: {error}", FETCH_AGAIN) from error


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int] | None:
    fast = tokenizer.data(FAST)
    if fast:
        own = _listed(fast.get("model", {}).get("vocab"))
        added = {str(one["content"]): int(one["id"]) for one in fast.get("added_tokens") or ()}
    elif "vocab.json" in tokenizer.files:
        own, added = _listed(tokenizer.data("vocab.json")), {}
    elif (text := tokenizer.text("vocab.txt")) is not None:
        own, added = {token: number for number, token in enumerate(text.removesuffix("\n").split("\n"))}, {}
    else:
        return None
    if not fast:
        added = _listed(tokenizer.data("added_tokens.json"))
    later = tokenizer.data(CONFIG).get("added_tokens_decoder") or {}
    return {**own, **{str(one["content"]): int(number) for number, one in later.items()}, **added}


def _listed(vocabulary: Any) -> dict[str, int]:
    """A mapping of tokens to numbers; a list of (token, score) is numbered by its order."""
    if isinstance(vocabulary, Mapping):
        return {str(token): int(number) for token, number in vocabulary.items() if isinstance(number, int)}
    return {str(entry[0]): number for number, entry in enumerate(vocabulary or ())}


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Put a tokenizer into a directory, in the place of one that is there."""
    for name in tokenizer_in(directory, "").files:
        (directory / name).unlink()
    for name, held in tokenizer.files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(held, Path):
            shutil.copyfile(held, path)
        else:
            path.write_text(held, encoding="utf-8", newline="\n")
