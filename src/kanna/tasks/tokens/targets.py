"""What a decoder that is told apart from its encoder begins with, and is to write."""

from functools import partial
from typing import Any

from kanna.errors import InputError
from kanna.tasks.tokens.padded import Wrapped, wrapped


def decoder_start(*settings: Any) -> int:
    """The token that a decoder begins with.

    Args:
        settings: Configurations that may say it; the first that does is believed.

    Raises:
        InputError: None does.
    """
    for holder in settings:
        token = getattr(holder, "decoder_start_token_id", None)
        if token is not None:
            return int(token)
    raise InputError("config.json does not say decoder_start_token_id", "add it; most often it is 0 or 2")


def as_target(tokenizer: Any, answer: str) -> Wrapped:
    """An answer as the decoder is to give it; some tokenizers write targets otherwise than prompts."""
    return wrapped(partial(_written, tokenizer), answer)


def _written(tokenizer: Any, text: str, **options: Any) -> Any:
    return tokenizer(text_target=text, **options)
