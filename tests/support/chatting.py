"""Tokenizers of whole words that know a chat, for the tests of conversations."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["hi", "you", "how", "are", "fine", "and", "good", "bye", "be", "brief", "well"]
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
IDS = {word: place for place, word in enumerate([*SPECIAL, *WORDS, "<think>", "</think>", "Answer:"])}
# As ChatML: a header, the words, a token that ends the turn, and a word behind it that nobody says.
CHAT = (
    "{{ bos_token }}{% for m in messages %} <|{{ m.role }}|> {{ m.content }} <|end|> and{% endfor %}"
    "{% if add_generation_prompt %} <|assistant|>{% endif %}"
)


def tokenizer(template: str | None = CHAT) -> Any:
    """Words are parted by spaces; "and" is an ordinary word."""
    words = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[3:],
        model_max_length=64,
    )
    fast.chat_template = template
    return fast


def ids(text: str) -> tuple[int, ...]:
    return tuple(IDS[word] for word in text.split())


def said(*contents: str, system: str = "") -> dict[str, Any]:
    """A row: user and assistant in turns."""
    talk = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *talk]}


@torch.random.fork_rng(devices=[])
def save_model(directory: Path, template: str | None = CHAT, seed: int = 0) -> Path:
    """A random model of one block that knows these words."""
    torch.manual_seed(seed)
    settings = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(IDS),
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
    )
    transformers.LlamaForCausalLM(settings).save_pretrained(directory)
    tokenizer(template).save_pretrained(directory)
    return directory
