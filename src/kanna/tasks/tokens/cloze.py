"""From rows to texts with masks: where an answer stands, its tokens, and the text without it."""

from dataclasses import dataclass
from typing import Any

from kanna.errors import InputError
from kanna.tasks.data.rows import joined
from kanna.tasks.tokens.padded import wrapped

# In a prompt, one of these or the tokenizer's own says where the answer stands.
MARKERS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Blank:
    """A prompt with the place of its answer.

    Args:
        before: Text before the answer, without spaces at its end.
        space: Those spaces.
        after: Text behind it.
        marked: Whether a marker says where the answer stands; otherwise it comes last.
        joiner: Spaces that stand before one that comes last; None where `joined` decides.
    """

    before: str
    space: str
    after: str
    marked: bool
    joiner: str | None = None

    def answer(self, answer: str) -> str:
        """The answer with the spaces that precede it: those of the marker, or one after a prompt."""
        if self.marked:
            return self.space + answer.strip(" ")
        return joined(self.before, answer, self.joiner)[len(self.before) :]


@dataclass(frozen=True)
class Masked:
    """A text as the model reads it.

    Args:
        ids: With special tokens.
        places: Of the masks in it, in order.
        cut: Tokens taken off its left, and where that was not enough, off its right.
        cut_right: Those taken off its right.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    cut: int = 0
    cut_right: int = 0


@dataclass(frozen=True)
class Cloze:
    """How prompts and answers become masked texts and tokens.

    Around the masks a text is tokenised as the tokenizer does it, so what the model reads depends on nothing
    of an answer but the number of its tokens.

    Args:
        tokenizer: Has a mask token; see `mask_token`.
        limit: Most tokens the model may read.
        refuse_long: Raise instead of cutting texts.
        joiner: What stands before an answer that comes last; see `joined`.
    """

    tokenizer: Any
    limit: int
    refuse_long: bool = False
    joiner: str | None = None

    def blank(self, prompt: str) -> Blank:
        """Where the answer stands.

        Raises:
            InputError: Two markers.
        """
        token = mask_token(self.tokenizer)
        plain = prompt
        for marker in MARKERS:
            plain = plain.replace(marker, token)
        parts = plain.split(token)
        if len(parts) > 2:
            raise InputError(
                f"the prompt {prompt[:80]!r} has {len(parts) - 1} mask markers",
                f"mark one place for the answer, with {token}",
            )
        marked, text = len(parts) == 2, parts[0]
        if self.joiner is not None and not marked:
            text = text.rstrip(" ") + self.joiner
        before = text.rstrip(" ")
        spaces = text[len(before) :]
        joiner = None if self.joiner is None or marked else spaces
        return Blank(before, spaces, parts[1] if marked else "", marked, joiner)

    def target(self, blank: Blank, answer: str) -> tuple[int, ...]:
        """Token ids of an answer in its place.

        Raises:
            InputError: It has none.
        """
        ids = tuple(
            self.tokenizer(blank.answer(answer), add_special_tokens=False, verbose=False)["input_ids"]
        )
        if not ids:
            raise InputError(f"the answer {answer!r} has no tokens", "give another")
        return ids

    def masked(self, blank: Blank, count: int) -> Masked:
        """The text with `count` masks where the answer stands.

        Raises:
            InputError: The tokenizer does not give as many, or the text is too long.
        """
        mask = mask_token(self.tokenizer)
        text = wrapped(self.tokenizer, blank.before + mask * count + blank.after)
        places = [i for i, token in enumerate(text.body) if token == self.tokenizer.mask_token_id]
        if len(places) != count:
            raise InputError(
                f"{count} masks became {len(places)} in the tokens of {blank.before[-40:]!r}",
                "repair the tokenizer's mask token",
            )
        left, right = self._cuts(len(text), places[0], len(text.body) - places[-1] - 1, count)
        kept = text.body[left : len(text.body) - right]
        shift = len(text.head) - left
        return Masked(
            text.head + kept + text.tail, tuple(place + shift for place in places), left + right, right
        )

    def _cuts(self, length: int, before: int, after: int, count: int) -> tuple[int, int]:
        """Tokens to take off the left, and off the right of a text with so many on each side of its masks."""
        over = max(0, length - self.limit)
        if over and self.refuse_long:
            raise InputError(
                f"a prompt with its answer of {count} tokens has {length}, and the context is {self.limit}",
                "shorten it, raise --context, or allow cutting from the left (no --refuse-long)",
            )
        left = min(over, before)
        if over - left > after:
            raise InputError(
                f"an answer has {count} tokens, and with special ones the model reads {self.limit}",
                "shorten it",
            )
        return left, over - left


def mask_token(tokenizer: Any) -> str:
    """The tokenizer's mask token.

    Raises:
        InputError: There is none.
    """
    token = getattr(tokenizer, "mask_token", None)
    if not token or getattr(tokenizer, "mask_token_id", None) is None:
        raise InputError(
            "the tokenizer has no mask token, so a masked language model cannot be asked",
            "copy the tokenizer of the original model, with its mask_token",
        )
    return str(token)
