"""Which examples of a step are computed together."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from kanna.training.examples import Example
from kanna.training.loss import summed_loss

# Losses that differ by less differ by rounding.
_ROUNDING = 1e-4


def in_passes(examples: Sequence[Example], tokens: int, equal: bool = False) -> Iterator[list[Example]]:
    """Parts of the examples of at most so many tokens, padding included; a longer one goes alone.

    Args:
        equal: Only examples of one length go together.
    """
    some: list[Example] = []
    for example in sorted(examples, key=len):
        full = len(example) * (len(some) + 1) > tokens
        if some and (full or (equal and len(example) != len(some[0]))):
            yield some
            some = []
        some.append(example)
    if some:
        yield some


def reads_padding(model: nn.Module, examples: Sequence[Example]) -> bool:
    """Whether an encoder computes a padded text otherwise, as seen on the shortest beside the longest.

    Where tokens see only what is before them, padding behind them is not seen.
    """
    short, long = min(examples, key=len), max(examples, key=len)
    if len(short) == len(long) or (short.label is None and short.filled is None):
        return False
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = sum(float(summed_loss(model, [one], None, False)) for one in (short, long))
            together = float(summed_loss(model, [short, long], None, False))
    finally:
        model.train(training)
    return not math.isclose(alone, together, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
