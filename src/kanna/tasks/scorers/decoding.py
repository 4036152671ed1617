"""Greedy decoding of a batch of prompts, padded on the left where their lengths differ."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from kanna.tasks.scorers.likelihood import check_finite
from kanna.tasks.tokens.padded import vocabulary_of

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Decoded:
    """What was written after some prompts.

    Args:
        ids: New ids of each prompt.
        logits: (prompts, vocabulary) of each step, where they were asked for.
    """

    ids: list[list[int]]
    logits: tuple[Tensor, ...] = ()


def decode(
    model: Any,
    tokenizer: Any,
    batch: Sequence[Prompt],
    new: int,
    done: Callable[[str], bool] | None = None,
    logits: bool = False,
) -> Decoded:
    """Continue each prompt by at most `new` ids.

    Args:
        done: Whether a text that was written is long enough.
        logits: Give those of every step, whatever they are.

    Raises:
        InputError: Logits that are not finite, unless they are asked for.
    """
    width = max(map(len, batch))
    fill = fill_token(model, tokenizer)
    ids = torch.tensor([[fill] * (width - len(prompt)) + list(prompt) for prompt in batch])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
    with torch.no_grad(), plain_settings(model, tokenizer):
        written = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=fill,
            stopping_criteria=StoppingCriteriaList([_Ends(tokenizer, width, done)] if done else []),
            logits_processor=LogitsProcessorList([] if logits else [_Finite(width, fill)]),
            return_dict_in_generate=True,
            output_logits=logits,
        )
    return Decoded(written.sequences[:, width:].tolist(), tuple(written.logits or ()))


def fill_token(model: Any, tokenizer: Any) -> int:
    """What stands where nothing does: any token, if only the model has an embedding of it."""
    most = vocabulary_of(model)
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((i for i in own if i is not None and (most is None or i < most)), 0)


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


class _Ends(StoppingCriteria):
    """A row is done when what is new in it is long enough."""

    def __init__(self, tokenizer: Any, width: int, done: Callable[[str], bool]) -> None:
        self._tokenizer, self._width, self._done = tokenizer, width, done

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._width :])
        return torch.tensor([self._done(text) for text in texts], device=input_ids.device)


class _Finite(LogitsProcessor):
    """Raises for logits that are not finite: the likeliest token of such is the first, whatever it is.

    A row that is done is filled up, and what the model says of that does not matter.
    """

    def __init__(self, width: int, fill: int) -> None:
        self._width, self._fill = width, fill

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.max(-1).values
        begins = input_ids.shape[1] == self._width
        check_finite(best if begins else best[input_ids[:, -1] != self._fill])
        return scores
