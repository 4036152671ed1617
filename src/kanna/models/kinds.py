"""What a class of transformers reads: text alone, text beside pictures or sound, or no text at all."""

from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from kanna.errors import InputError

_TEXT = "input_ids"


def refuse_without_text(architecture: Any) -> None:
    """Raise InputError for a class that cannot be run on text alone, such as one of pictures or of speech."""
    if not reads_text(architecture):
        reads = ", ".join(_modalities(architecture))
        raise InputError(
            f"{architecture.__name__} reads {reads}, and cannot be run on text alone",
            "kanna compresses language models: give one that reads text",
        )


def reads_text(architecture: Any) -> bool:
    """Whether text alone is an input that a class takes."""
    if getattr(architecture, "main_input_name", _TEXT) != _TEXT:
        return False
    return set(_modalities(architecture)) <= {"text"} or bool(architecture.can_generate())


def wraps_language_model(name: str) -> bool:
    """Whether a class predicts the next token of text and takes pictures or sound beside it (LLaVA)."""
    architecture: Any = getattr(transformers, name, None)
    if not name.endswith("ForConditionalGeneration") or not hasattr(architecture, "can_generate"):
        return False
    encodes = getattr(architecture.config_class, "is_encoder_decoder", False)
    return not encodes and set(_modalities(architecture)) > {"text"} and reads_text(architecture)


def answers_what_is_encoded(name: str) -> bool:
    """Whether a class has an encoder that reads text, and a decoder that writes text from it (T5, BART)."""
    return name in set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()) and reads_text(
        getattr(transformers, name)
    )


def _modalities(architecture: Any) -> tuple[str, ...]:
    given = getattr(architecture, "input_modalities", "text")
    return (given,) if isinstance(given, str) else tuple(given)
