"""Tiny models with an encoder and a decoder, with tokenizers that end a text as theirs do."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz "
VOCAB = 3 + len(LETTERS)
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCAB}
_T5: dict[str, Any] = {
    **_IDS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_BART: dict[str, Any] = {
    **_IDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
FAMILIES = ("t5", "mt5", "bart", "marian")


def model(name: str) -> PreTrainedModel:
    """A random one, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _made(name)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(2.0) if parameter.dim() > 1 else parameter.add_(
                    0.1 * torch.randn_like(parameter)
                )
    return made.eval()


def _made(name: str) -> PreTrainedModel:
    match name:
        case "t5":
            return transformers.T5ForConditionalGeneration(transformers.T5Config(**_T5))
        case "mt5":
            gated = transformers.MT5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
            return transformers.MT5ForConditionalGeneration(gated)
        case "bart":
            return transformers.BartForConditionalGeneration(transformers.BartConfig(**_BART))
        case "bart_classifier":
            return transformers.BartForSequenceClassification(transformers.BartConfig(**_BART))
        case "marian":
            return transformers.MarianMTModel(transformers.MarianConfig(**_BART))
        case _:
            raise ValueError(name)


def tokenizer(begins: bool) -> PreTrainedTokenizerFast:
    """One token a letter; every text ends in </s>, and begins with <s> where the family's do."""
    known = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: 3 + i for i, letter in enumerate(LETTERS)}
    made = Tokenizer(models.WordLevel(known, "<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    single = "<s> $A </s>" if begins else "$A </s>"
    made.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def save(name: str, directory: Path) -> Path:
    model(name).save_pretrained(directory)
    tokenizer(name.startswith("bart")).save_pretrained(directory)
    return directory
