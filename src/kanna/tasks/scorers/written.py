"""What a model writes after each of many prompts, greedily, and only what is new."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from kanna.progress import Progress, told
from kanna.tasks.tokens.padded import batches


@dataclass(frozen=True)
class Written:
    """New text after one prompt.

    Args:
        text: Up to the first stop string, which is left out, and without special tokens.
        tokens: New tokens computed for it.
    """

    text: str
    tokens: int


def write(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    batch_tokens: int = 2048,
    progress: Progress = lambda *_: None,
) -> list[Written]:
    """Continue every prompt (token ids) greedily. Prompts of like length go together, padded on the left.

    Args:
        stop: Texts at whose first appearance an answer ends.
        batch_tokens: Tokens of prompts and answers in memory at a time, about.
    """
    order = sorted({tuple(prompt) for prompt in prompts}, key=len)
    sizes = [len(prompt) + max_new_tokens for prompt in order]
    groups = [
        [order[i] for i in some] for some in batches(sizes, [0] * len(sizes), batch_tokens, 0, equal=False)
    ]
    texts: dict[tuple[int, ...], Written] = {}
    for batch in told(progress, "generate", groups):
        new = _continue(model, tokenizer, batch, max_new_tokens, stop)
        texts |= {prompt: _cut(tokenizer, ids, stop) for prompt, ids in zip(batch, new, strict=True)}
    return [texts[tuple(prompt)] for prompt in prompts]


def _continue(
    model: Any, tokenizer: Any, batch: Sequence[tuple[int, ...]], new: int, stop: Sequence[str]
) -> list[list[int]]:
    """New ids of each prompt."""
    width = max(map(len, batch))
    fill = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    ids = torch.tensor([[fill] * (width - len(prompt)) + list(prompt) for prompt in batch])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
    ends = [_Ends(tokenizer, width, stop)] if stop else []
    with torch.no_grad(), plain_settings(model, tokenizer):
        written = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=fill,
            stopping_criteria=StoppingCriteriaList(ends),
        )
    new_ids: list[list[int]] = written[:, width:].tolist()
    return new_ids


@contextmanager
def plain_settings(model: Any, tokenizer: Any) -> Iterator[None]:
    """Within the block, of the generation settings that came with a model only the ends of texts hold.

    Others, such as a repetition penalty, make greedy decoding write something else than the likeliest token.
    """
    before = model.generation_config
    ends = before.eos_token_id if isinstance(before.eos_token_id, list) else [before.eos_token_id]
    known = dict.fromkeys(token for token in (*ends, tokenizer.eos_token_id) if token is not None)
    model.generation_config = GenerationConfig(
        bos_token_id=before.bos_token_id, eos_token_id=list(known) or None, pad_token_id=before.pad_token_id
    )
    try:
        yield
    finally:
        model.generation_config = before


def _cut(tokenizer: Any, ids: list[int], stop: Sequence[str]) -> Written:
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    for end in stop:
        text = text.split(end, 1)[0]
    return Written(text, len(ids))


class _Ends(StoppingCriteria):
    """A row is done when what is new in it holds a stop string."""

    def __init__(self, tokenizer: Any, width: int, stop: Sequence[str]) -> None:
        self._tokenizer, self._width, self._stop = tokenizer, width, tuple(stop)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._width :])
        done = [any(end in text for end in self._stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)
