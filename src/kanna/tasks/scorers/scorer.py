"""One way to ask any language model: how likely are these continuations, and what do you write."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from kanna.errors import InputError
from kanna.progress import Progress
from kanna.tasks.scorers.decoding import Prompt
from kanna.tasks.scorers.likelihood import Likelihood, Passes
from kanna.tasks.scorers.planning import plan_batches
from kanna.tasks.scorers.written import WritePlan, plan_writing, write
from kanna.tasks.tokens.encode import Encoder, Piece
from kanna.tasks.tokens.special import end_note

T = TypeVar("T")


@dataclass
class Work:
    """What asking took.

    Args:
        cut: Prompts that were shortened from the left to fit the context.
        forward_tokens: Tokens the model computed for likelihoods.
        naive_tokens: Tokens that one row per continuation would have had.
        packed: Whether shared prefixes were computed once.
        layouts: Where rows were computed apart that were to share more.
        notes: What the reader of the numbers must know.
    """

    cut: int = 0
    forward_tokens: int = 0
    naive_tokens: int = 0
    packed: bool = True
    layouts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def by_row(ask: Callable[..., T], prompts: Sequence[str], *beside: Sequence[Any]) -> list[T]:
    """What `ask` says of each row; its InputErrors are told which row it was, from 1."""
    answers = []
    for number, given in enumerate(zip(prompts, *beside, strict=True), 1):
        try:
            answers.append(ask(*given))
        except InputError as error:
            raise InputError(f"row {number}: {error.problem}", error.remedy) from error
    return answers


@dataclass
class Scorer(ABC):
    """A model that can be asked.

    Args:
        model: In evaluation mode.
        tokenizer: Of the model.
        work: What asking took so far.
    """

    model: nn.Module
    tokenizer: Any = field(init=False)
    work: Work = field(default_factory=Work, kw_only=True)

    @abstractmethod
    def likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]], ranks: bool, progress: Progress
    ) -> list[list[Likelihood]]:
        """Of each continuation of each prompt."""

    @abstractmethod
    def write(
        self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str], progress: Progress
    ) -> list[str]:
        """New text after each prompt."""

    def length(self, text: str) -> int:
        """Tokens of a text without special ones."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class TokenScorer(Scorer):
    """A model whose likelihoods are sums over the tokens of a continuation."""

    @abstractmethod
    def passes(self, prompts: Sequence[str], continuations: Sequence[Sequence[str]]) -> Passes:
        """What `likelihoods` runs."""

    def likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]], ranks: bool, progress: Progress
    ) -> list[list[Likelihood]]:
        return self.passes(prompts, continuations).run(self.model, ranks, progress)


@dataclass
class CausalScorer(TokenScorer):
    """A model that predicts the next token.

    Args:
        encoder: Of its tokenizer.
        batch_tokens: Tokens per forward pass, about.
        share: Compute what prompts share once.
    """

    encoder: Encoder
    batch_tokens: int = 2048
    share: bool = True
    _plan: tuple[object, WritePlan] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.tokenizer = self.encoder.tokenizer
        if self.encoder.end:
            self.work.notes.append(end_note(self.tokenizer, self.encoder.end))

    def passes(self, prompts: Sequence[str], continuations: Sequence[Sequence[str]]) -> Passes:
        rows = by_row(self.encoder.pieces, prompts, continuations)
        pieces: list[Piece] = [piece for row in rows for piece in row]
        plan = plan_batches(self.model, pieces, self.batch_tokens, self.share)
        self.work.cut += sum(any(piece.cut for piece in row) for row in rows)
        self.work.forward_tokens += plan.forward_tokens
        self.work.naive_tokens += plan.naive_tokens
        self.work.packed &= plan.packed
        self.work.layouts += plan.notes
        return plan.passes(self.model, pieces, tuple(map(len, rows)))

    def write(
        self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str], progress: Progress
    ) -> list[str]:
        encoder, room = self.encoder, self.encoder.limit - new_tokens
        if room < 1:
            raise InputError(
                f"{new_tokens} new tokens leave no room for a prompt in a context of {encoder.limit}",
                "lower --max-new-tokens",
            )
        ids = by_row(encoder.start_of, prompts)
        long = [number for number, tokens in enumerate(ids, 1) if len(tokens) > room]
        if long and encoder.refuse_long:
            raise InputError(
                f"row {long[0]}: a prompt of {len(ids[long[0] - 1])} tokens with {new_tokens} new ones is "
                f"longer than the context of {encoder.limit}",
                "shorten it, or allow cutting from the left (no --refuse-long)",
            )
        # Mostly the same prompts as those cut for likelihoods.
        self.work.cut = max(self.work.cut, len(long))
        cut = tuple(tuple(encoder.shortened(tokens, room)) for tokens in ids)
        texts = write(
            self.model,
            self.tokenizer,
            cut,
            new_tokens,
            stop=stop,
            blank=False,
            plan=self._plan_of(cut, new_tokens),
            progress=progress,
        )
        return [written.text for written in texts]

    def _plan_of(self, prompts: tuple[Prompt, ...], new_tokens: int) -> WritePlan:
        """How these prompts are continued; found out once, however often the model is edited in between."""
        asked = (prompts, new_tokens)
        if self._plan is None or self._plan[0] != asked:
            plan = plan_writing(self.model, self.tokenizer, prompts, new_tokens, self.batch_tokens)
            self.work.layouts += plan.notes
            self._plan = (asked, plan)
        return self._plan[1]


class Replayed(Scorer):
    """Likelihoods that are known already; text is written by `scorer`, with its model as it is then.

    Args:
        known: As `Scorer.likelihoods` gives them, for the rows that will be asked.
        scorer: For everything else.
    """

    def __init__(self, known: list[list[Likelihood]], scorer: Scorer) -> None:
        super().__init__(scorer.model, work=scorer.work)
        self.tokenizer, self.known, self.scorer = scorer.tokenizer, known, scorer

    def likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]], ranks: bool, progress: Progress
    ) -> list[list[Likelihood]]:
        if list(map(len, continuations)) != list(map(len, self.known)):
            raise ValueError("other rows are asked than those whose likelihoods are known")
        return self.known

    def write(
        self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str], progress: Progress
    ) -> list[str]:
        return self.scorer.write(prompts, new_tokens, stop, progress)
