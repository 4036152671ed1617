"""A random model of two layers on disk, with a tokenizer of its own."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = [f"w{index}" for index in range(90)]
TEXT = " ".join(WORDS[(index * index + 3 * index) % 90] for index in range(600))


def save_tokenizer(directory: Path, chat: bool = False) -> None:
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )
    if chat:
        fast.chat_template = "{% for m in messages %}w1 {{ m['content'] }} w2{% endfor %}"
    fast.save_pretrained(directory)


@torch.random.fork_rng(devices=[])
def save_model(directory: Path, max_shard_size: str = "5GB", chat: bool = False, **changes: Any) -> Path:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(settings | changes)))
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    save_tokenizer(directory, chat)
    return directory
