"""Token sequences packed so that what they begin with in common is there once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Pack:
    """One row for the model: a forest of tokens, parents before children.

    Args:
        tokens: Token ids.
        depths: Position of each in its own sequence, from 0.
        parents: Place of the token before; -1 for a first one.
        paths: Sequence number -> places of its tokens, in order.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, number: int, sequence: Sequence[int], shared: int, before: Sequence[int]) -> None:
        """Append a sequence whose first `shared` tokens lie at the first places of `before`."""
        path = list(before[:shared])
        for depth in range(shared, len(sequence)):
            self.tokens.append(sequence[depth])
            self.depths.append(depth)
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.tokens) - 1)
        self.paths[number] = path

    def ancestors(self) -> NDArray[np.bool_]:
        """(tokens, tokens): whether column is row itself or comes before it in its sequence."""
        seen = np.zeros((len(self), len(self)), dtype=bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                seen[place] = seen[parent]
            seen[place, place] = True
        return seen


def packs(
    sequences: Sequence[Sequence[int]], size: int, numbers: Sequence[int] | None = None
) -> Iterator[Pack]:
    """Pack sequences, neighbours in lexicographic order together, up to `size` tokens or the longest one.

    In that order no earlier sequence shares more with the next one than the last does, so comparing with the
    last is enough to compute every shared prefix once per pack.

    Args:
        numbers: Of the sequences to be packed; all by default.
    """
    order = sorted(_numbers(sequences, numbers), key=lambda i: tuple(sequences[i]))
    pack, last, longest = Pack(), -1, 0
    for number in order:
        sequence = sequences[number]
        shared = shared_start(sequence, sequences[last]) if pack.paths else 0
        longest = max(longest, len(sequence))
        if pack.paths and len(pack) + len(sequence) - shared > max(size, longest):
            yield pack
            pack, shared, longest = Pack(), 0, len(sequence)
        pack.add(number, sequence, shared, pack.paths.get(last, ()))
        last = number
    if pack.paths:
        yield pack


def singles(sequences: Sequence[Sequence[int]], numbers: Sequence[int] | None = None) -> Iterator[Pack]:
    """One pack per distinct sequence, of those with these numbers."""
    made: dict[tuple[int, ...], Pack] = {}
    for number in _numbers(sequences, numbers):
        sequence = sequences[number]
        pack = made.setdefault(tuple(sequence), Pack())
        pack.add(number, sequence, len(sequence) if pack.paths else 0, next(iter(pack.paths.values()), ()))
    yield from made.values()


def _numbers(sequences: Sequence[Sequence[int]], numbers: Sequence[int] | None) -> Sequence[int]:
    return range(len(sequences)) if numbers is None else numbers


def shared_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
