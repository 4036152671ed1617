"""An L1 penalty on the weights of bases, so that those that the task does not hold up shrink.

    penalty = l1 * mean over matrices of (sum_i sigma_i / sum_i sigma0_i)

The sum in the denominator is that of all bases before any was dropped: the penalty is `l1` at first, whatever
the scale of a matrix, and falls as weights shrink and as bases go.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from kanna.methods.basel.bases import Bases


def sums_of(matrices: Mapping[str, Bases]) -> dict[str, Tensor]:
    """Matrix -> sum of its weights as they are, with no gradient."""
    return {name: bases.sigma.detach().sum() for name, bases in matrices.items()}


def add_penalty(matrices: Mapping[str, Bases], l1: float, first: Mapping[str, Tensor]) -> None:
    """Add the penalty's gradient to those of the weights.

    Args:
        first: What `sums_of` gave when all bases were there.
    """
    for name, bases in matrices.items():
        if not float(first[name]):  # a matrix of zeros
            continue
        penalty = l1 / len(matrices) * bases.sigma.sum() / first[name]
        (gradient,) = torch.autograd.grad(penalty, bases.weight)
        bases.weight.grad = gradient if bases.weight.grad is None else bases.weight.grad + gradient
