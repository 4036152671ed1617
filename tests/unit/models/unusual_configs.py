"""Families whose blocks are not simply run one after the other, or whose layers are not simply called."""

from typing import Any

import transformers
from family_configs import VOCAB
from transformers import PretrainedConfig

_BERT: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
_DEBERTA = {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_GEMMA_3N: dict[str, Any] = {
    **_BERT,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0] * 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_T5 = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": 0}

UNUSUAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    # one block, run thrice
    "albert": ("Albert", "AlbertForMaskedLM", {**_BERT, "embedding_size": 16}),
    # layers that read relative positions, too
    "deberta_v1": ("Deberta", "DebertaForSequenceClassification", _DEBERTA),
    # the same, with a convolution between two blocks
    "deberta_v2": (
        "DebertaV2",
        "DebertaV2ForMaskedLM",
        {**_DEBERTA, "position_buckets": 8, "share_att_key": True, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    # values that read another input than queries and keys
    "mobilebert": (
        "MobileBert",
        "MobileBertForMaskedLM",
        {
            **_BERT,
            "embedding_size": 16,
            "intra_bottleneck_size": 24,
            "true_hidden_size": 24,
            "intermediate_size": 24,
        },
    ),
    # states four at a time; keys and values of earlier blocks
    "gemma3n": ("Gemma3nText", "Gemma3nForCausalLM", _GEMMA_3N),
    # position biases computed in the first block
    "t5_encoder": ("T5", "T5EncoderModel", _T5),
    # fewer tokens from block to block
    "funnel": (
        "Funnel",
        "FunnelForMaskedLM",
        {"block_sizes": [1, 1], "d_model": 24, "n_head": 3, "d_head": 8, "d_inner": 40},
    ),
    # length first
    "xlnet": ("XLNet", "XLNetLMHeadModel", {"d_model": 24, "n_layer": 2, "n_head": 3, "d_inner": 40}),
    # layers whose weights the model's own code reads
    "mamba": (
        "Mamba",
        "MambaForCausalLM",
        {"hidden_size": 24, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 6},
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        "RecurrentGemmaForCausalLM",
        {
            "num_hidden_layers": 3,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "lru_width": 24,
            "attention_window_size": 8,
        },
    ),
    # no head, or one that gives no logits
    "bert_model": ("Bert", "BertModel", _BERT),
    "bert_qa": ("Bert", "BertForQuestionAnswering", _BERT),
    "mistral_model": ("Mistral", "MistralModel", {**_BERT, "num_key_value_heads": 2}),
}  # fmt: skip


def unusual(name: str) -> PretrainedConfig:
    kind, architecture, settings = UNUSUAL[name]
    made: PretrainedConfig = getattr(transformers, f"{kind}Config")(vocab_size=VOCAB, **settings)
    made.architectures = [architecture]
    return made
