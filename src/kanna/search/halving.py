"""Successive halving: many candidates on few rows, then half of them on more, and so on.

Jamieson and Talwalkar 2016, algorithm 1, with parts of a validation set as the resource. What a candidate
scored on a part is kept, so a round costs its new part only. Rows of one group stay in one part.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

C = TypeVar("C")
Key = tuple[float, ...]


def survivors(candidates: int, rounds: int, finalists: int) -> list[int]:
    """How many candidates are left after each round: halved, but never fewer than the finalists."""
    left, counts = candidates, []
    for _ in range(rounds):
        left = min(left, max(finalists, (left + 1) // 2))
        counts.append(left)
    return [*counts[:-1], min(left, finalists)] if counts else []


def halve(
    candidates: Sequence[C],
    rounds: int,
    finalists: int,
    score: Callable[[Sequence[C], int], Sequence[Key]],
) -> list[C]:
    """The finalists, the best of the last round first.

    Args:
        rounds: Before the final; round i, from 1, uses the first i parts.
        score: (candidates, parts) -> for each what to sort by, the smallest first; ties keep their order.
    """
    left = list(candidates)
    for number, keep in enumerate(survivors(len(left), rounds, finalists), 1):
        if len(left) <= finalists:
            break
        keys = score(left, number)
        order = sorted(range(len(left)), key=lambda i: keys[i])
        left = [left[i] for i in order[:keep]]
    return left
