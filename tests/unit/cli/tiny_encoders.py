"""Random encoders of two layers, with tokenizers of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn

HEADS = ["ka", "lo", "mi", "nu", "po", "ra", "se", "ti"]
PIECES = ["##ba", "##do", "##fe"]
LONGEST = 40
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def word_pieces() -> Any:
    """BERT's kind: lower case, [CLS] text [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *HEADS, *PIECES]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=LONGEST,
    )


def bytes_in_pairs() -> Any:
    """RoBERTa's kind: spaces belong to words, <s> text </s>, a mask that takes the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [" ".join(HEADS[(i * i + j) % 8] + HEADS[(i + j) % 8] for j in range(9)) for i in range(40)]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=LONGEST,
    )


# family -> (tokenizer, configuration)
ENCODERS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "Bert": (word_pieces, transformers.BertConfig),
    "Roberta": (bytes_in_pairs, transformers.RobertaConfig),
    "DistilBert": (word_pieces, transformers.DistilBertConfig),
    "Electra": (word_pieces, transformers.ElectraConfig),
    "Albert": (word_pieces, transformers.AlbertConfig),
    "MPNet": (bytes_in_pairs, transformers.MPNetConfig),
    "MobileBert": (word_pieces, transformers.MobileBertConfig),
    "FNet": (word_pieces, transformers.FNetConfig),
    "ConvBert": (word_pieces, transformers.ConvBertConfig),
}
_OWN: dict[str, dict[str, Any]] = {
    "Roberta": {"max_position_embeddings": LONGEST + 2},
    "MPNet": {"max_position_embeddings": LONGEST + 2},
    "DistilBert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "Electra": {"embedding_size": 16},
    "Albert": {"embedding_size": 16},
    "ConvBert": {"embedding_size": 32, "pad_token_id": 0},
    "MobileBert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
}


@torch.random.fork_rng(devices=[])
def encoder(family: str, head: str = "ForMaskedLM", **changes: Any) -> tuple[nn.Module, Any]:
    """A model in evaluation mode and its tokenizer."""
    make, settings = ENCODERS[family]
    tokenizer = make()
    sizes: dict[str, Any] = _SIZES | {"max_position_embeddings": LONGEST, "vocab_size": len(tokenizer)}
    config = settings(**(sizes | {"initializer_range": 0.2} | _OWN.get(family, {}) | changes))
    torch.manual_seed(len(family))
    model = getattr(transformers, f"{family}{head}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model, tokenizer


def save_encoder(directory: Path, family: str, head: str = "ForMaskedLM", **changes: Any) -> Path:
    model, tokenizer = encoder(family, head, **changes)
    model.save_pretrained(directory)  # type: ignore[operator]
    tokenizer.save_pretrained(directory)
    return directory
