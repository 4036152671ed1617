"""Texts to embeddings, with the tokens, poolings and layers that a model directory asks for."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kanna.calibration.calls import body
from kanna.errors import InputError
from kanna.progress import Progress, told
from kanna.tasks.embeddings.modules import Sentences
from kanna.tasks.tokens.padded import batches, vocabulary_of
from kanna.tasks.tokens.special import check_known


@dataclass(frozen=True)
class Tokens:
    """What the model reads of a text.

    Args:
        ids: Token ids with special tokens.
        types: Of the same length where the tokenizer gives them, else empty.
        prompt: How many of the first tokens are of the prompt and take no part in the pooling.
        cut: Whether the text did not fit.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    prompt: int
    cut: bool


@dataclass
class Embedder:
    """A model that embeds texts.

    Args:
        model: In evaluation mode; a head on it is passed by.
        tokenizer: Of the model.
        sentences: What its directory says.
        limit: Most tokens of a text; the rest is cut off on the right.
        refuse_long: Raise instead.
        batch_tokens: Tokens per forward pass, about.
        cut: Texts that were cut so far.
    """

    model: nn.Module
    tokenizer: Any
    sentences: Sentences
    limit: int
    refuse_long: bool = False
    batch_tokens: int = 2048
    cut: int = 0

    def embed(self, texts: Sequence[tuple[str, str]], progress: Progress = lambda *_: None) -> Tensor:
        """(texts, width) in float64 on the CPU, of (prompt, text) each; equal ones are read once."""
        distinct = list(dict.fromkeys(texts))
        read = [self.tokens(prompt, text) for prompt, text in distinct]
        self.cut += sum(one.cut for one in read)
        # Rows of one length need no padding, which not every model knows how to leave out.
        groups = batches([len(one.ids) for one in read], [1] * len(read), self.batch_tokens, len(read), True)
        found: dict[int, Tensor] = {}
        for group in told(progress, "embed", list(groups)):
            found |= dict(zip(group, self._pass([read[i] for i in group]), strict=True))
        embeddings = torch.stack([found[i] for i in range(len(distinct))])
        for layer in self.sentences.layers:
            embeddings = layer(embeddings)
        if not bool(torch.isfinite(embeddings).all()):
            raise InputError(
                "the model's embeddings are not finite",
                "check the checkpoint, or compute with --dtype float32",
            )
        place = {text: i for i, text in enumerate(distinct)}
        return embeddings[[place[text] for text in texts]]

    def tokens(self, prompt: str, text: str) -> Tokens:
        """A text behind its prompt, cut on the right; special tokens stay."""
        whole = self._tokenized(prompt + text)
        ids = whole["input_ids"]
        if not ids:
            raise InputError(f"the text {text[:80]!r} has no tokens to read", "give another")
        check_known(ids, vocabulary_of(self.model), self.tokenizer)
        cut = len(ids) > self.limit
        if cut and self.refuse_long:
            raise InputError(
                f"a text has {len(ids)} tokens, and {self.limit} are read: {text[:80]!r}",
                "shorten it, raise --context, or allow cutting (no --refuse-long)",
            )
        kept = self._tokenized(prompt + text, truncation=True, max_length=self.limit) if cut else whole
        types = tuple(kept.get("token_type_ids") or ())
        skipped = 0 if self.sentences.include_prompt or not prompt else self._prompt_length(prompt)
        return Tokens(tuple(kept["input_ids"]), types, skipped, cut)

    def _tokenized(self, text: str, **how: Any) -> Mapping[str, Any]:
        text = text.strip()
        read: Mapping[str, Any] = self.tokenizer(
            text.lower() if self.sentences.lower else text, verbose=False, **how
        )
        return read

    def _prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt alone, less the special one that would end it."""
        ids = self._tokenized(prompt)["input_ids"]
        ends = bool(ids) and ids[-1] in self.tokenizer.all_special_ids
        return len(ids) - ends

    def _pass(self, group: Sequence[Tokens]) -> Tensor:
        """(rows, pooled width) in float64 of rows of equal length."""
        reader = body(self.model)
        device = next(self.model.parameters()).device
        ids = torch.tensor([one.ids for one in group], device=device)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if all(one.types for one in group):
            given["token_type_ids"] = torch.tensor([one.types for one in group], device=device)
        taken = inspect.signature(reader.forward).parameters
        with torch.no_grad():
            states = reader(**{name: value for name, value in given.items() if name in taken})[0]
        wide = states.cpu().double()
        return torch.stack(
            [pooled(row, self.sentences.poolings, one.prompt) for row, one in zip(wide, group, strict=True)]
        )


def pooled(states: Tensor, poolings: Sequence[str], skipped: int = 0) -> Tensor:
    """One vector of the hidden states (tokens, width) of a text, in float64.

    Args:
        skipped: So many of the first tokens take no part; cls is the first token all the same.
    """
    kept = states[skipped:]
    if not len(kept):
        raise InputError("a text has no tokens behind its prompt", "raise --context, or give another text")
    places = torch.arange(skipped + 1, len(states) + 1, dtype=states.dtype)[:, None]
    return torch.cat([_POOL[name](states, kept, places) for name in poolings])


_POOL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cls": lambda states, kept, places: states[0],
    "max": lambda states, kept, places: kept.max(0).values,
    "mean": lambda states, kept, places: kept.mean(0),
    "mean_sqrt_len_tokens": lambda states, kept, places: kept.sum(0) / len(kept) ** 0.5,
    "weightedmean": lambda states, kept, places: (places * kept).sum(0) / places.sum(),
    "lasttoken": lambda states, kept, places: kept[-1],
}
