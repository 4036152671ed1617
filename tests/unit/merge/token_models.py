"""Small random models with tokenizers of few words, and their rows by token."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from merge_models import weights
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def save(
    directory: Path,
    seed: int,
    words: Sequence[str],
    added: Sequence[str] = (),
    *,
    rows: int | None = None,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    hidden: int = 16,
    **config: object,
) -> Path:
    """A Llama whose tokenizer knows words, and behind them marks that are looked for first."""
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(one, normalized=False) for one in added])
    settings = {
        "vocab_size": rows or len(words) + len(added),
        "hidden_size": hidden,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        model.model.norm.weight += torch.rand(hidden, generator=torch.Generator().manual_seed(seed))
    model.to(dtype).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "end" if "end" in words else words[2]}
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    return directory


def numbers(directory: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()


def rows(directory: Path, tensor: str = EMBEDDING) -> dict[str, Tensor]:
    """Token -> its row."""
    values = weights(directory)[tensor].double()
    return {token: values[number] for token, number in numbers(directory).items()}


def mean(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(rows)).mean(0)


def same(found: Tensor, expected: Tensor | Mapping[str, Tensor]) -> bool:
    assert isinstance(expected, Tensor)
    return float((found.double() - expected).abs().max()) <= 1e-6
