"""The tokenizer of a model directory, and how long a text it is meant for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.models.kinds import wraps_language_model

LONGEST_DEFAULT = 2048
# By what names a config.json says how many positions there are; the last is MPT's and DBRX's.
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
# Families whose positions are counted from behind the padding index, which is 1 unless the config says else.
_BEHIND_PADDING = (
    "roberta",
    "camembert",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
    "roberta-prelayernorm",
    "data2vec-text",
    "longformer",
    "ibert",
    "luke",
    "mpnet",
    "esm",
)
# Their classes are named like those of causal models, but see what comes after a token.
_NOT_CAUSAL = ("XLMWithLMHeadModel", "FlaubertWithLMHeadModel", "XLNetLMHeadModel")


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model directory.

    Raises:
        InputError: The directory has none, or it cannot be read.
    """
    from kanna.checkpoint.loader import tokenizer_of

    tokenizer = tokenizer_of(directory)
    if tokenizer is None:
        raise InputError(
            f"{directory} has no tokenizer, and text was given", "copy the tokenizer files of its model there"
        )
    return tokenizer


def predicts_next_token(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a causal language model, by the name of its class."""
    name = str((config.get("architectures") or [""])[0])
    if name.endswith(("CausalLM", "LMHeadModel")):
        return name not in _NOT_CAUSAL
    return wraps_language_model(name)


def context_length(config: Mapping[str, Any], tokenizer: Any, wanted: int | None) -> int:
    """`wanted`, else min(max positions, the tokenizer's limit, 2048).

    Raises:
        InputError: More than the model has positions for.
    """
    positions = _positions(_of_text(config))
    if wanted is not None:
        if positions is not None and wanted > positions:
            raise InputError(f"--context {wanted} is more than the model's {positions} positions", "lower it")
        return wanted
    known = LONGEST_DEFAULT if positions is None else min(positions, LONGEST_DEFAULT)
    return min(known, int(getattr(tokenizer, "model_max_length", known)))


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of what reads text, in a config.json that may have a part of its own for it."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a config.json says a model may read; None where it says nothing."""
    limits = [int(config[key]) for key in _POSITIONS if config.get(key)]
    if not limits:
        return None
    if config.get("model_type") in _BEHIND_PADDING:
        pad = config.get("pad_token_id")
        return min(limits) - (2 if pad is None else pad + 1)
    return min(limits)
