"""Tiny models whose rows change with what stands beside them, and where that does not matter."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

VOCAB = 61
_SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GQA = {
    **_SIZES,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 4.0, 9.0, 16.0],
}
# Recurrences, convolutions, chunks, windows that count places, rotary factors that follow the longest row.
DISTURBED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mamba2": (
        "Mamba2",
        {
            **_SIZES,
            "num_hidden_layers": 2,
            "state_size": 8,
            "head_dim": 16,
            "num_heads": 4,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "bamba": ("Bamba", {**_GQA, **_MAMBA, "attn_layer_indices": [1]}),
    "lfm2": ("Lfm2", {**_GQA, "layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": (
        "RecurrentGemma",
        {
            **_GQA,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 30,
        },
    ),
    "rwkv": ("Rwkv", {**_SIZES, "num_hidden_layers": 2, "context_length": 512}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": VOCAB}),
    "gpt_neo": (
        "GPTNeo",
        {
            **_SIZES,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "window_size": 16,
        },
    ),
    "llama4": (
        "Llama4",
        {
            **_GQA,
            "intermediate_size_mlp": 48,
            "head_dim": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 20,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "phi3": ("Phi3", {**_GQA, "original_max_position_embeddings": 24, "rope_parameters": _LONGROPE}),
}  # fmt: skip


def disturbed(name: str) -> nn.Module:
    kind, settings = DISTURBED[name]
    kind_of_config = "Llama4Text" if kind == "Llama4" else kind
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind_of_config}Config")(**settings)
        model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
