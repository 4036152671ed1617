"""The vocabulary of a model as a GGUF file holds it, by the package `gguf`.

llama.cpp has ways to split text built in, and a file names one. A tokenizer that splits in a way without a
name here is refused: other tokens would be read there than those that the model was trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kanna.checked import read_json
from kanna.errors import InputError
from kanna.runs.source import Source

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# How text is split before it is put together again -> the name of llama.cpp.
_SPLITS: Mapping[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_LLAMA3, "ByteLevel without a pattern"): "llama-bpe",
    (_QWEN2, "ByteLevel without a pattern"): "qwen2",
}
_WITHOUT = "no_vocab"


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of text.

    Args:
        model: Kind of the vocabulary.
        split: Name of the way in which text is split.
        tokens: All, as many as the model has embeddings; empty where the directory has no tokenizer.
        types: Of each: normal, control, and so on.
        scores: Of each; empty where merges decide.
        special: Merges, beginnings and ends, and the chat template.
    """

    model: str
    split: str = ""
    tokens: tuple[Any, ...] = ()
    types: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    special: Any = None


def vocabulary_of(package: Any, source: Source) -> Vocabulary:
    """The vocabulary of a model directory.

    Raises:
        InputError: There is one that cannot be written; says why.
    """
    path = source.directory / "tokenizer.json"
    if not path.is_file():
        return _sentence_pieces(package, source, None)
    data = read_json(path)
    model = data.get("model") or {}
    if model.get("type") == "BPE" and not model.get("byte_fallback"):
        return _byte_pairs(package, source, data)
    return _sentence_pieces(package, source, data)


def _byte_pairs(package: Any, source: Source, data: Mapping[str, Any]) -> Vocabulary:
    split = _SPLITS.get(_parts(data.get("pre_tokenizer") or {}))
    plain = data.get("normalizer") is None or (data["normalizer"].get("type"), split) == ("NFC", "qwen2")
    if split is None or not plain:
        raise _refused(source, "splits or changes text in a way that llama.cpp has no name for")
    try:
        vocabulary = package.vocab.BpeVocab(source.directory)
    except (OSError, ValueError, KeyError) as error:
        raise _refused(source, str(error)) from error
    kinds = {
        str(token["content"]): package.TokenType.CONTROL
        if token["special"]
        else package.TokenType.USER_DEFINED
        for token in data.get("added_tokens") or ()
    }
    entries = [
        (text, 0.0, kinds.get(text.decode() if isinstance(text, bytes) else text, kind))
        for text, _, kind in vocabulary.all_tokens()
    ]
    return _filled(package, source, "gpt2", split, entries, scored=False)


def _sentence_pieces(package: Any, source: Source, data: Mapping[str, Any] | None) -> Vocabulary:
    if not (source.directory / "tokenizer.model").is_file():
        if data is None:
            return Vocabulary(_WITHOUT)
        kind = (data.get("model") or {}).get("type")
        raise _refused(
            source, f"is a {kind} without the file tokenizer.model, which has the scores of its pieces"
        )
    try:
        vocabulary = package.vocab.SentencePieceVocab(source.directory)
    except (OSError, ValueError, RuntimeError) as error:
        raise _refused(source, str(error)) from error
    return _filled(package, source, "llama", "default", list(vocabulary.all_tokens()), scored=True)


def _filled(
    package: Any, source: Source, model: str, split: str, entries: list[tuple[Any, float, int]], scored: bool
) -> Vocabulary:
    """As many tokens as the model has embeddings."""
    config: Any = source.skeleton.config
    wanted = int(config.vocab_size)
    if len(entries) > wanted:
        raise _refused(source, f"has {len(entries)} tokens, and the model {wanted} embeddings")
    unused = package.TokenType.UNUSED
    entries = entries + [(f"[PAD{number}]", 0.0, unused) for number in range(len(entries), wanted)]
    tokens, scores, types = zip(*entries, strict=True)
    special = package.SpecialVocab(source.directory, load_merges=model == "gpt2", n_vocab=wanted)
    return Vocabulary(model, split, tokens, tuple(map(int, types)), scores if scored else (), special)


def _parts(data: Mapping[str, Any]) -> tuple[str, ...]:
    """What a pre-tokenizer does, one word a step; anything unusual makes a word that no table has."""
    if data.get("type") == "Sequence":
        return tuple(part for each in data.get("pretokenizers", ()) for part in _parts(each))
    kind = str(data.get("type"))
    if kind == "ByteLevel" and not data.get("add_prefix_space"):
        return (kind if data.get("use_regex", True) else f"{kind} without a pattern",)
    if kind == "Digits" and data.get("individual_digits"):
        return (kind,)
    if kind == "Split" and data.get("behavior") == "Isolated" and not data.get("invert"):
        return (str((data.get("pattern") or {}).get("Regex")),)
    return (f"unknown {kind}",)


def _refused(source: Source, why: str) -> InputError:
    return InputError(
        f"the tokenizer of {source.name} cannot be written to gguf: it {why}",
        "kanna export DIR --format dense --out D2, then llama.cpp's own converter",
    )
