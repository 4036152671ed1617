"""One way to ask any language model: how likely are these continuations, and what do you write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from kanna.errors import InputError
from kanna.tasks.encode import Encoder, Piece
from kanna.tasks.likelihood import Likelihood, likelihoods
from kanna.tasks.written import write

Progress = Callable[[str, int, int], None]


@dataclass
class Work:
    """What asking took.

    Args:
        cut: Prompts that were shortened from the left to fit the context.
        forward_tokens: Tokens the model computed for likelihoods.
        naive_tokens: Tokens that one row per continuation would have had.
        packed: Whether shared prefixes were computed once.
        notes: What the reader of the numbers must know.
    """

    cut: int = 0
    forward_tokens: int = 0
    naive_tokens: int = 0
    packed: bool = True
    notes: list[str] = field(default_factory=list)


class Scorer(Protocol):
    """A model that can be asked."""

    work: Work

    def likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]], ranks: bool, progress: Progress
    ) -> list[list[Likelihood]]:
        """Of each continuation of each prompt."""
        ...

    def write(
        self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str], progress: Progress
    ) -> list[str]:
        """New text after each prompt."""
        ...

    def length(self, text: str) -> int:
        """Tokens of a text without special ones."""
        ...


@dataclass
class CausalScorer:
    """A model that predicts the next token.

    Args:
        model: In evaluation mode.
        encoder: Of its tokenizer.
        batch_tokens: Tokens per forward pass, about.
        share: Compute what prompts share once.
    """

    model: nn.Module
    encoder: Encoder
    batch_tokens: int = 2048
    share: bool = True
    work: Work = field(default_factory=Work)

    def likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]], ranks: bool, progress: Progress
    ) -> list[list[Likelihood]]:
        pieces = [self.encoder.pieces(p, c) for p, c in zip(prompts, continuations, strict=True)]
        flat: list[Piece] = [piece for row in pieces for piece in row]
        result = likelihoods(
            self.model,
            flat,
            batch_tokens=self.batch_tokens,
            ranks=ranks,
            share=self.share,
            progress=progress,
        )
        self.work.cut += sum(any(piece.cut for piece in row) for row in pieces)
        self.work.forward_tokens += result.forward_tokens
        self.work.naive_tokens += result.naive_tokens
        self.work.packed &= result.packed
        found = iter(result.found)
        return [[next(found) for _ in row] for row in pieces]

    def write(
        self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str], progress: Progress
    ) -> list[str]:
        encoder, room = self.encoder, self.encoder.limit - new_tokens
        if room < 1:
            raise InputError(
                f"{new_tokens} new tokens leave no room for a prompt in a context of {encoder.limit}",
                "lower --max-new-tokens",
            )
        ids = [encoder.start_of(prompt) for prompt in prompts]
        long = sum(len(one) > room for one in ids)
        if long and encoder.refuse_long:
            raise InputError(
                f"{long} prompts with {new_tokens} new tokens are longer than the context of {encoder.limit}",
                "shorten them, or allow cutting from the left (no --refuse-long)",
            )
        self.work.cut += long
        cut = [one[-room:] for one in ids]
        tokenizer: Any = encoder.tokenizer
        found = write(
            self.model,
            tokenizer,
            cut,
            new_tokens,
            stop=stop,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )
        return [one.text for one in found]

    def length(self, text: str) -> int:
        return len(self.encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
