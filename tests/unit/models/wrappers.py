"""Tiny models that wrap a language model and take pictures beside text."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB = 61
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# As many weights as the text tower has: size alone does not tell the two apart.
_SIGHT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_SIGHT: dict[str, Any] = {"depth": 1, "num_heads": 2, "patch_size": 4, "in_channels": 3}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
WRAPPERS = ("gemma3", "llava", "qwen2_vl", "qwen2_5_vl")


def wrapper(name: str) -> PreTrainedModel:
    """A random model of a family, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _MAKERS[name]()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(3.0) if parameter.dim() > 1 else parameter.add_(
                    0.1 * torch.randn_like(parameter)
                )
    return made.eval()


def _gemma3() -> PreTrainedModel:
    text = transformers.Gemma3TextConfig(**_TEXT, head_dim=8, sliding_window=16)
    sight = transformers.SiglipVisionConfig(**_SIGHT)
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=sight,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=59,
        eoi_token_index=58,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _llava() -> PreTrainedModel:
    text = transformers.LlamaConfig(**_TEXT, tie_word_embeddings=False)
    sight = transformers.CLIPVisionConfig(**_SIGHT)
    config = transformers.LlavaConfig(text_config=text, vision_config=sight, image_token_index=60)
    return transformers.LlavaForConditionalGeneration(config)


def _qwen2_vl() -> PreTrainedModel:
    sight = {**_QWEN_SIGHT, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(text_config={**_TEXT, **_SECTIONS}, vision_config=sight, **_marks())
    return transformers.Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> PreTrainedModel:
    sight = {
        **_QWEN_SIGHT,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 24,
        "window_size": 16,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config={**_TEXT, **_SECTIONS}, vision_config=sight, **_marks()
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _marks() -> dict[str, int]:
    return {
        "image_token_id": 60,
        "video_token_id": 59,
        "vision_start_token_id": 58,
        "vision_end_token_id": 57,
    }


_MAKERS = {"gemma3": _gemma3, "llava": _llava, "qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl}
