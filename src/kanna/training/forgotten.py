"""What is forgotten: the loss on text that is not learnt, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from kanna.training.examples import Example
from kanna.training.loop import validation_loss
from kanna.training.loss import reads_in_parts

# One window of so many, of text that is replayed, is kept apart.
_ONE_IN = 10
_TOKENS = 8192


@dataclass(frozen=True)
class Forgotten:
    """Mean loss of every token of some text, nats.

    Args:
        before: Of the model as it was.
        after: As it is written.
        tokens: How many.
    """

    before: float
    after: float
    tokens: int


def held_out(windows: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Windows of a text that are learnt, and those that are not: the last of every ten, or of fewer."""
    if len(windows) < 2:
        return tuple(windows), ()
    apart = set(range(_ONE_IN - 1, len(windows), _ONE_IN)) or {len(windows) - 1}
    learnt = tuple(window for place, window in enumerate(windows) if place not in apart)
    return learnt, tuple(windows[place] for place in sorted(apart))


def text_loss(model: nn.Module, text: Sequence[Example]) -> float | None:
    """Mean loss of the tokens of a text; None where there is none."""
    if not text:
        return None
    return validation_loss(model, text, _TOKENS, reads_in_parts(model, text[0]))


def forgotten(before: float | None, model: nn.Module, text: Sequence[Example]) -> Forgotten | None:
    """Set beside what `text_loss` was before."""
    after = text_loss(model, text)
    if before is None or after is None:
        return None
    return Forgotten(before, after, sum(example.targets for example in text))
