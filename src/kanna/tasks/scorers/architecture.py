"""What a model of some architecture can be asked, said before its weights are read."""

from collections.abc import Mapping
from typing import Any

from kanna.errors import InputError
from kanna.models.kinds import answers_what_is_encoded
from kanna.tasks.data.tables import EMBEDDED_SHAPES
from kanna.tasks.data.task import Task
from kanna.tasks.metrics.user_metric import METRICS
from kanna.tasks.records import ANSWER, CHOICE, EMBEDDED, TEXT
from kanna.tasks.scorers.answer import needs_writing
from kanna.tasks.scorers.classifier import classifies, labels_of, match
from kanna.tasks.scorers.masked import fills_masks
from kanna.tasks.tokens.cloze import mask_token
from kanna.tasks.tokens.tokenizer import predicts_next_token

NO_JOINER = "leave out --joiner"


def check_model(
    name: str, config: Mapping[str, Any], tokenizer: Any, *, harness: bool, chat: bool, embeds: bool = False
) -> None:
    """Raise unless a model of this config.json can be evaluated.

    Args:
        embeds: Only embeddings of texts are asked for.
        harness: Tasks of lm_eval are asked for.
        chat: Prompts go into a chat template.

    Raises:
        InputError: It is none that can, or not in this way.
    """
    if predicts_next_token(config):
        return
    classes = config.get("architectures")
    if fills_masks(config):
        mask_token(tokenizer)
    elif classifies(config):
        labels_of(config)
    elif not embeds and not answers_what_is_encoded(class_of(config)):
        raise InputError(
            f"{name} is {classes}: no architecture that can be evaluated",
            "give a causal or masked language model, an encoder-decoder, or one with a classification head "
            "(...ForCausalLM, ...ForMaskedLM, ...ForConditionalGeneration, ...ForSequenceClassification), or "
            f"rows about embeddings: {EMBEDDED_SHAPES}",
        )
    if harness:
        raise InputError(
            f"{name} is no causal language model: {classes}, and tasks of lm_eval need one",
            "give rows of your own: --task FILE",
        )
    if chat:
        raise InputError(f"{name} is no causal language model: {classes}", "leave out --chat")


def class_of(config: Mapping[str, Any]) -> str:
    """Name of the class that a config.json is for."""
    return str((config.get("architectures") or [""])[0])


def check_joiner(name: str, config: Mapping[str, Any], templated: bool) -> None:
    """Raise InputError where nothing stands between prompt and answer, or a template says what.

    Args:
        templated: A chat template writes the rows.
    """
    if templated:
        raise InputError("what stands between prompt and answer is said by the chat template", NO_JOINER)
    if not (predicts_next_token(config) or fills_masks(config)):
        raise InputError(f"{name} reads no answer behind a prompt", NO_JOINER)


def check_task(name: str, config: Mapping[str, Any], task: Task, metric: str) -> None:
    """Raise unless such a model can be asked these rows, and be scored so.

    Args:
        metric: Known to be one for rows of this kind, or the user's own.

    Raises:
        InputError: It cannot; what it can is named.
    """
    if task.kind in EMBEDDED:
        _check_embeds(name, config)
        return
    if predicts_next_token(config):
        return
    if any(row.messages for row in task.rows):
        classes = config.get("architectures")
        raise InputError(
            f"{name} is no causal language model: {classes}, and the rows of {task.name} are conversations",
            'give rows such as {"prompt": ..., "answer": ...}',
        )
    if task.kind == TEXT:
        classes = config.get("architectures")
        raise InputError(f"{name} is no causal language model: {classes}", "perplexity of text needs one")
    if classifies(config):
        _check_labels(name, config, task, metric)
    elif fills_masks(config) and task.kind == ANSWER and needs_writing(metric):
        known = ", ".join(other for other in METRICS[ANSWER] if not needs_writing(other))
        raise InputError(
            f"{name} is a masked language model, which does not write the text that {metric} is of",
            f"use --metric with one of {known}; rows with choices are scored by acc",
        )


def _check_embeds(name: str, config: Mapping[str, Any]) -> None:
    """Decoders beside an encoder wait for what they should go on with, and a text alone is no such thing."""
    architecture = class_of(config)
    decodes = config.get("is_encoder_decoder") and not architecture.endswith("EncoderModel")
    if decodes or answers_what_is_encoded(architecture):
        raise InputError(
            f"{name} is {architecture}, an encoder with a decoder: it has no hidden states of a text alone",
            "save its encoder as a model of its own (...EncoderModel)",
        )


def _check_labels(name: str, config: Mapping[str, Any], task: Task, metric: str) -> None:
    labels = labels_of(config)
    if task.kind != CHOICE:
        some = ", ".join(labels[:12])
        raise InputError(
            f"{name} has a classification head, and the rows of {task.name} have no choices",
            f'give rows with choices among its labels ({some}): {{"prompt", "choices", "label"}}',
        )
    if metric in ("acc_norm", "log_loss_per_token"):
        raise InputError(
            f"{name} has a classification head, and {metric} is of choices that are read as text",
            "use --metric with one of acc, log_loss",
        )
    match(labels, [row.choices for row in task.rows])
