"""From rows to token ids: what is read, and which of it is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import joined
from kanna.tasks.tokens.forest import shared_start
from kanna.tasks.tokens.special import check_known, cut_left, end_of, start_of, without


@dataclass(frozen=True)
class Piece:
    """A continuation to be scored after its context.

    Args:
        context: Token ids read before; at least one.
        target: Token ids whose log-likelihood is wanted; at least one.
        characters: Length of the continuation as it was given, which length-normalised scores divide by.
        cut: Tokens taken off the left of the context to fit the model.
    """

    context: tuple[int, ...]
    target: tuple[int, ...]
    characters: int
    cut: int = 0

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last target."""
        return self.context + self.target[:-1]


@dataclass(frozen=True)
class Encoder:
    """How prompts and answers become tokens.

    Prompt and answer are tokenised together, and a prompt's trailing spaces belong to the answer, since most
    vocabularies put them before words. Special tokens come as the tokenizer puts them before a text, and none
    stand behind it; with `chat`, as the chat template writes them.

    Args:
        tokenizer: Of the model.
        limit: Most tokens the model may read.
        chat: Put prompts into the tokenizer's chat template as a user's message.
        templated: Prompts are what that template wrote.
        refuse_long: Raise instead of cutting prompts from the left.
        vocabulary: How many tokens the model has embeddings of; None where that is not known.
        joiner: What stands between prompt and answer where no template says so; see `joined`.
    """

    tokenizer: Any
    limit: int
    chat: bool = False
    refuse_long: bool = False
    vocabulary: int | None = None
    templated: bool = False
    joiner: str | None = None

    @property
    def complete(self) -> bool:
        """Whether texts hold their special tokens, since a template wrote them."""
        return self.chat or self.templated

    @cached_property
    def end(self) -> tuple[int, ...]:
        """Special tokens that the tokenizer puts behind a text, which are left out: it goes on there."""
        return () if self.complete else end_of(self.tokenizer)

    @cached_property
    def _head(self) -> tuple[int, ...]:
        """Special tokens that the tokenizer puts before a text."""
        return () if self.complete else start_of(self.tokenizer)

    def prompt(self, prompt: str) -> str:
        """What the model reads, as text."""
        if self.templated or not self.chat:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that goes on.

        Raises:
            InputError: One that the model does not have.
        """
        ids = self.tokenizer(text, add_special_tokens=not self.complete, verbose=False)["input_ids"]
        check_known(ids, self.vocabulary, self.tokenizer)
        return without(ids, self.end)

    def begun(self, ids: Sequence[int]) -> int:
        """How many of the ids are special ones that texts begin with."""
        if self._head and tuple(ids[: len(self._head)]) == self._head:
            return len(self._head)
        return int(bool(ids) and ids[0] == getattr(self.tokenizer, "bos_token_id", None))

    def shortened(self, ids: Sequence[int], room: int) -> list[int]:
        """At most `room` ids, cut from the left but for the token that texts begin with."""
        return cut_left(ids, room, self.begun(ids))

    def start_of(self, prompt: str) -> list[int]:
        """Ids of a prompt that is to be continued, with what follows it but trailing spaces."""
        return self.ids(self._context(self.prompt(prompt))) or self._start()

    def pieces(self, prompt: str, continuations: Sequence[str]) -> list[Piece]:
        """One piece per continuation of the same prompt.

        Raises:
            InputError: Nothing to read before a continuation, or a prompt too long that is not to be cut.
        """
        text = self.prompt(prompt)
        whole = [
            text + answer.lstrip() if self.complete else joined(text, answer, self.joiner)
            for answer in continuations
        ]
        context = self._context(text)
        before = self.ids(context) if context else self._start()
        first = [] if context else before  # of what stands for an empty context, the texts know nothing
        return [
            self._piece(before, first + self.ids(joint), len(answer))
            for joint, answer in zip(whole, continuations, strict=True)
        ]

    def _context(self, text: str) -> str:
        """What is read before an answer, be it scored or written: spaces at the end belong to the answer."""
        before = text.rstrip(" ")
        return before if self.complete or self.joiner is None else (before + self.joiner).rstrip(" ")

    def _start(self) -> list[int]:
        """What stands for an empty context: the token that texts begin with."""
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self.tokenizer, name, None)
            if token is not None:
                check_known([int(token)], self.vocabulary, self.tokenizer)
                return [int(token)]
        raise InputError(
            "a prompt is empty and the tokenizer has no token that begins a text",
            "give every row a prompt",
        )

    def _piece(self, before: list[int], whole: list[int], characters: int) -> Piece:
        start = max(1, min(shared_start(whole, before), len(whole) - 1))
        if len(whole) < 2:
            raise InputError("a prompt with its answer has fewer than two tokens", "give longer rows")
        context, target = whole[:start], whole[start:]
        room = self.limit - len(target) + 1
        if room < 1:
            raise InputError(
                f"an answer has {len(target)} tokens, and the model reads {self.limit}", "shorten it"
            )
        cut = max(0, len(context) - room)
        if cut and self.refuse_long:
            raise InputError(
                f"a prompt of {len(context)} tokens with its answer of {len(target)} is longer than the "
                f"context of {self.limit}",
                "shorten it, raise --context, or allow cutting from the left (no --refuse-long)",
            )
        return Piece(tuple(self.shortened(context, room)), tuple(target), characters, cut)
