"""Successive halving: many candidates on few rows, then half of them on twice as many, and so on.

Jamieson and Talwalkar 2016, algorithm 1, with the rows of a validation set as the resource.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Round:
    """One round.

    Args:
        candidates: How many take part.
        rows: On how many rows, from the beginning.
    """

    candidates: int
    rows: int


def rounds(candidates: int, rows: int, first: int, finalists: int) -> list[Round]:
    """The rounds before the finalists meet on all rows; none where there are no more than they.

    Args:
        rows: Of the whole validation set.
        first: Of the first round.
    """
    found = []
    left, used = candidates, min(first, rows)
    while left > finalists and used < rows:
        found.append(Round(left, used))
        left, used = max(finalists, (left + 1) // 2), 2 * used
    return found


def halve(
    candidates: Sequence[C],
    plan: Sequence[Round],
    finalists: int,
    score: Callable[[Sequence[C], int], Sequence[tuple[float, ...]]],
) -> list[C]:
    """The finalists, the best of the last round first.

    Args:
        score: (candidates, rows) -> for each what to sort by, the smallest first; ties keep their order.
    """
    left = list(candidates)
    for number, one in enumerate(plan):
        keys = score(left, one.rows)
        order = sorted(range(len(left)), key=lambda i: keys[i])
        keep = plan[number + 1].candidates if number + 1 < len(plan) else finalists
        left = [left[i] for i in order[:keep]]
    return left[:finalists] if plan else left
