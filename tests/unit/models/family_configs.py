"""Tiny configurations of every family, with sizes chosen so that no two shapes can be confused."""

from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig

HIDDEN, INNER, VOCAB, LAYERS = 24, 40, 61, 3
HEADS, KEY_HEADS = 6, 2

_GQA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 32,
}
_NO_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDE_HEAD: dict[str, Any] = {**_GQA, "head_dim": 10, **_NO_SPECIAL}  # q: 60 rows, k and v: 20
_MHA: dict[str, Any] = {key: value for key, value in _GQA.items() if key != "num_key_value_heads"}
_GPT2: dict[str, Any] = {
    "n_embd": HIDDEN,
    "n_inner": INNER,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 32,
}
_MOE: dict[str, Any] = {"moe_intermediate_size": 14, "num_experts": 4, "num_experts_per_tok": 2}
_FALCON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "vocab_size": VOCAB,
    "ffn_hidden_size": INNER,
    "alibi": False,
    "bias": True,
    **_NO_SPECIAL,
}
_ENCODER: dict[str, Any] = {**_MHA, **_NO_SPECIAL}

# name -> (model type, architecture, entries)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaForCausalLM", {**_GQA, "tie_word_embeddings": False, **_NO_SPECIAL}),
    "mistral": ("mistral", "MistralForCausalLM", _WIDE_HEAD),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", {**_GQA, "tie_word_embeddings": True, **_NO_SPECIAL}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", _WIDE_HEAD),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", _WIDE_HEAD),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM", _WIDE_HEAD),
    "phi": ("phi", "PhiForCausalLM", {**_GQA, **_NO_SPECIAL}),
    "phi3": ("phi3", "Phi3ForCausalLM", {**_GQA, **_NO_SPECIAL}),
    "gpt2": ("gpt2", "GPT2LMHeadModel", {**_GPT2, "vocab_size": VOCAB, **_NO_SPECIAL}),
    "gpt_neox": ("gpt_neox", "GPTNeoXForCausalLM", {**_MHA, **_NO_SPECIAL}),
    "gptj": (
        "gptj",
        "GPTJForCausalLM",
        {**_GPT2, "rotary_dim": 2, "vocab_size": VOCAB, **_NO_SPECIAL},
    ),
    "opt": (
        "opt",
        "OPTForCausalLM",
        {**_MHA, "ffn_dim": INNER, "word_embed_proj_dim": 10, **_NO_SPECIAL},
    ),
    "falcon_7b": (
        "falcon",
        "FalconForCausalLM",
        {**_FALCON, "multi_query": True, "new_decoder_architecture": False},
    ),
    "falcon_40b": (
        "falcon",
        "FalconForCausalLM",
        {**_FALCON, "num_kv_heads": KEY_HEADS, "new_decoder_architecture": True},
    ),
    "falcon_rw": (
        "falcon",
        "FalconForCausalLM",
        {**_FALCON, "multi_query": False, "new_decoder_architecture": False},
    ),
    "bert_mlm": ("bert", "BertForMaskedLM", _ENCODER),
    "bert_classifier": ("bert", "BertForSequenceClassification", {**_ENCODER, "num_labels": 3}),
    "roberta_mlm": ("roberta", "RobertaForMaskedLM", _ENCODER),
    "roberta_classifier": ("roberta", "RobertaForSequenceClassification", {**_ENCODER, "num_labels": 3}),
    "mixtral": ("mixtral", "MixtralForCausalLM", {**_GQA, "num_local_experts": 4, **_NO_SPECIAL}),
    "qwen2_moe": (
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**_GQA, **_MOE, "shared_expert_intermediate_size": 18, "mlp_only_layers": [1], **_NO_SPECIAL},
    ),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeForCausalLM", {**_WIDE_HEAD, **_MOE}),
}

# Architectures for which the table has no entry of their own, or little: the generic walk has to do.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "stablelm": ("stablelm", "StableLmForCausalLM", {**_GQA, **_NO_SPECIAL}),
    "olmo2": ("olmo2", "Olmo2ForCausalLM", {**_GQA, **_NO_SPECIAL}),
    "cohere": ("cohere", "CohereForCausalLM", {**_GQA, **_NO_SPECIAL}),
    "mpt": (
        "mpt",
        "MptForCausalLM",
        {"d_model": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 32, "vocab_size": VOCAB},
    ),
    "bloom": (
        "bloom",
        "BloomForCausalLM",
        {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB, **_NO_SPECIAL},
    ),
    "modernbert": (
        "modernbert",
        "ModernBertForMaskedLM",
        {**_ENCODER, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "gpt_bigcode": (
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        {**_GPT2, "multi_query": True, "vocab_size": VOCAB, **_NO_SPECIAL},
    ),
    "gpt_bigcode_mha": (
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        {**_GPT2, "multi_query": False, "vocab_size": VOCAB, **_NO_SPECIAL},
    ),
    "codegen": (
        "codegen",
        "CodeGenForCausalLM",
        {**_GPT2, "n_head": 4, "rotary_dim": 2, "vocab_size": VOCAB, **_NO_SPECIAL},
    ),
    "glm4": ("glm4", "Glm4ForCausalLM", {**_WIDE_HEAD, "attention_bias": True}),
    "distilbert": (
        "distilbert",
        "DistilBertForMaskedLM",
        {"dim": HIDDEN, "hidden_dim": INNER, "n_layers": LAYERS, "n_heads": HEADS, "vocab_size": VOCAB},
    ),
    "starcoder2": ("starcoder2", "Starcoder2ForCausalLM", {**_GQA, **_NO_SPECIAL}),
    "nemotron": ("nemotron", "NemotronForCausalLM", {**_GQA, **_NO_SPECIAL}),
    "gpt_oss": (
        "gpt_oss",
        "GptOssForCausalLM",
        {**_WIDE_HEAD, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}


def config(name: str) -> PretrainedConfig:
    """The configuration `name` of the two tables."""
    model_type, architecture, entries = {**FAMILIES, **OTHERS}[name]
    return CONFIG_MAPPING[model_type](architectures=[architecture], **entries)


@torch.random.fork_rng(devices=[])
def model(name: str) -> nn.Module:
    """A real model of that configuration: random weights, biases too, float32, no dropout."""
    torch.manual_seed(0)
    settings = config(name)
    built = getattr(transformers, settings.architectures[0])(settings).eval()
    with torch.no_grad():
        for name_, parameter in built.named_parameters():
            if name_.endswith("bias"):
                parameter.normal_()
    return built
