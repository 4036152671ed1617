"""Encoder-decoders: the encoder reads the prompt, the decoder is asked for the answer or writes it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kanna.errors import InputError
from kanna.progress import Progress, told
from kanna.tasks.scorers.decoding import fill_token, plain_settings
from kanna.tasks.scorers.likelihood import Batch, Passes, check_finite, logits_at, most_logits
from kanna.tasks.scorers.scorer import TokenScorer, by_row
from kanna.tasks.scorers.written import shown
from kanna.tasks.tokens.padded import Wrapped, batches, vocabulary_of, wrapped
from kanna.tasks.tokens.special import check_known
from kanna.tasks.tokens.targets import as_target, decoder_start


@dataclass(frozen=True)
class _Asked:
    """An answer to a prompt.

    Args:
        prompt: Token ids that the encoder reads.
        begun: Token ids that the decoder begins with: its start, and what the tokenizer puts before a text.
        target: Token ids of the answer, at least one; the end of the text is not one of them.
    """

    prompt: tuple[int, ...]
    begun: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def decoded(self) -> tuple[int, ...]:
        """What the decoder reads."""
        return self.begun + self.target[:-1]


@dataclass
class Seq2SeqScorer(TokenScorer):
    """A model with an encoder and a decoder.

    Prompts of one length share a forward pass, so that nothing is padded in the encoder; in the decoder
    padding comes last, where causal attention does not look.

    Args:
        tokenizer: Of the model.
        limit: Most tokens the encoder or the decoder may read.
        refuse_long: Raise instead of cutting prompts from the left.
        batch_tokens: Tokens per forward pass, about.
    """

    tokenizer: Any
    limit: int
    refuse_long: bool = False
    batch_tokens: int = 2048

    def passes(self, prompts: Sequence[str], continuations: Sequence[Sequence[str]]) -> Passes:
        rows = by_row(self._asked, prompts, continuations)
        asked = [answer for row in rows for answer in row]
        groups = list(self._groups(asked))
        self.work.naive_tokens += sum(len(one.prompt) + len(one.decoded) for one in asked)
        self.work.forward_tokens = self.work.naive_tokens
        batched = tuple(partial(_batch, self.model, some, asked) for some in groups)
        return Passes(batched, tuple(map(len, rows)), logits_at)

    def write(
        self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str], progress: Progress
    ) -> list[str]:
        begun = self._begun("a")
        if len(begun) + new_tokens > self.limit:
            raise InputError(
                f"{new_tokens} new tokens do not fit in a context of {self.limit}", "lower --max-new-tokens"
            )
        ids = by_row(self._prompt, prompts)
        distinct = list(dict.fromkeys(ids))
        sizes = [len(prompt) + new_tokens for prompt in distinct]
        groups = list(batches(sizes, [0] * len(sizes), self.batch_tokens, 0, equal=True))
        texts: dict[tuple[int, ...], str] = {}
        for some in told(progress, "generate", groups):
            rows = [distinct[i] for i in some]
            texts |= dict(zip(rows, self._written(rows, begun, new_tokens, stop), strict=True))
        return [texts[prompt] for prompt in ids]

    def _groups(self, asked: Sequence[_Asked]) -> Iterator[list[int]]:
        """Numbers of the answers of each forward pass: all their prompts are of one length."""
        wanted = [len(one.target) for one in asked]
        sizes = [len(one.prompt) for one in asked]
        yield from batches(sizes, wanted, self.batch_tokens, most_logits(self.model), equal=True)

    def _asked(self, prompt: str, answers: Sequence[str]) -> list[_Asked]:
        read = self._prompt(prompt, count=True)
        return [self._answer(read, answer) for answer in answers]

    def _answer(self, prompt: tuple[int, ...], answer: str) -> _Asked:
        target = as_target(self.tokenizer, answer).body
        begun = self._begun(answer)
        if not target:
            raise InputError(f"the answer {answer!r} has no tokens", "give another")
        check_known((*begun, *target), vocabulary_of(self.model), self.tokenizer)
        if len(begun) + len(target) - 1 > self.limit:
            raise InputError(
                f"an answer has {len(target)} tokens, and the model reads {self.limit}", "shorten it"
            )
        return _Asked(prompt, begun, target)

    def _prompt(self, prompt: str, count: bool = False) -> tuple[int, ...]:
        """Token ids of a prompt, its left cut to fit."""
        text = wrapped(self.tokenizer, prompt)
        over = max(0, len(text) - self.limit)
        if over and self.refuse_long:
            raise InputError(
                f"a prompt has {len(text)} tokens, and the context is {self.limit}",
                "shorten it, raise --context, or allow cutting from the left (no --refuse-long)",
            )
        if not text.ids:
            raise InputError("a prompt has no tokens to read", "give every row a prompt")
        check_known(text.ids, vocabulary_of(self.model), self.tokenizer)
        self.work.cut += count and bool(over)
        return Wrapped(text.head, text.body[over:], text.tail).ids

    def _begun(self, answer: str) -> tuple[int, ...]:
        settings = self.model.config, getattr(self.model, "generation_config", None)
        return (decoder_start(*settings), *as_target(self.tokenizer, answer).head)

    def _written(
        self, rows: Sequence[tuple[int, ...]], begun: tuple[int, ...], new: int, stop: Sequence[str]
    ) -> list[str]:
        """What the model writes to prompts of one length."""
        model: Any = self.model
        with torch.no_grad(), plain_settings(model, self.tokenizer):
            written = model.generate(
                torch.tensor(rows, device=model.device),
                decoder_input_ids=torch.tensor([begun] * len(rows), device=model.device),
                decoder_start_token_id=begun[0],
                pad_token_id=fill_token(model, self.tokenizer),
                max_new_tokens=new,
                do_sample=False,
                use_cache=_caches(model.config),
                return_dict_in_generate=True,
                output_logits=True,
            )
        for logits in written.logits:
            check_finite(logits)
        new_ids = written.sequences[:, len(begun) :]
        texts = [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in new_ids]
        return [shown(text, stop, blank=False) for text in texts]


def _caches(config: Any) -> bool:
    """Whether transformers keeps keys and values for all layers: it counts those of the encoder (T5)."""
    depth = getattr(config, "num_decoder_layers", None)
    return depth is None or depth <= config.num_hidden_layers


def _batch(model: nn.Module, some: Sequence[int], asked: Sequence[_Asked]) -> Batch:
    """The tensors of one forward pass."""
    device = next(model.parameters()).device
    width = max(len(asked[number].decoded) for number in some)
    places: list[int] = []
    targets: list[int] = []
    numbers: list[int] = []
    for row, number in enumerate(some):
        first = row * width + len(asked[number].begun) - 1
        places += range(first, first + len(asked[number].target))
        targets += asked[number].target
        numbers += [number] * len(asked[number].target)
    decoded = [asked[number].decoded for number in some]
    inputs = {
        "input_ids": [asked[number].prompt for number in some],
        "decoder_input_ids": [(*ids, *[0] * (width - len(ids))) for ids in decoded],
    }
    given: dict[str, Tensor] = {name: torch.tensor(ids, device=device) for name, ids in inputs.items()}
    return Batch(
        inputs=given,
        places=torch.tensor(places, device=device),
        index=torch.arange(len(places), device=device),
        tokens=torch.tensor(targets, device=device),
        numbers=tuple(numbers),
    )
