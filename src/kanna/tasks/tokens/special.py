"""Tokens that are not of a text itself: those that a tokenizer puts around it, and those a model lacks."""

from collections.abc import Sequence
from typing import Any

from kanna.errors import InputError
from kanna.tasks.tokens.padded import Wrapped, wrapped

_PROBES = ("a", "A", "1", ".", "the")


def end_of(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts behind every text, such as `</s>` (add_eos_token)."""
    return _around(tokenizer).tail


def start_of(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts before every text, such as `<s>`."""
    return _around(tokenizer).head


def _around(tokenizer: Any) -> Wrapped:
    """Seen on a text that it knows."""
    tried = (wrapped(tokenizer, probe) for probe in _PROBES)
    return next((seen for seen in tried if seen.body), Wrapped((), (), ()))


def end_note(tokenizer: Any, end: Sequence[int]) -> str:
    """What the reader must know of it."""
    text = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(end))))
    return f"the tokenizer puts {text} behind every text: it was left out, since texts go on there"


def without(ids: Sequence[int], end: Sequence[int]) -> list[int]:
    """Token ids but for what the tokenizer put behind them."""
    ids = list(ids)
    return ids[: -len(end)] if end and ids[-len(end) :] == list(end) else ids


def cut_left(ids: Sequence[int], room: int, start: int) -> list[int]:
    """At most `room` token ids: the first `start`, which begin a text, and as many of the last as fit."""
    if len(ids) <= room:
        return list(ids)
    if start >= room:
        return list(ids[len(ids) - room :])
    return [*ids[:start], *ids[len(ids) - (room - start) :]]


def check_known(ids: Sequence[int], vocabulary: int | None, tokenizer: Any) -> None:
    """Raise InputError for a token that the model has no embedding of.

    Args:
        vocabulary: How many it has; None where that is not known.
    """
    strange = next((token for token in ids if vocabulary is not None and token >= vocabulary), None)
    if strange is not None:
        raise InputError(
            f"the token {tokenizer.convert_ids_to_tokens(strange)!r} has the id {strange}, and the model has "
            f"embeddings of {vocabulary:,} tokens",
            "take it out of the text, or use the model whose embeddings were resized for it",
        )
