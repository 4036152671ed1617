"""Rows that say the same, or nearly."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

LIKE = 0.8
_SHINGLE = 3
_HASHES, _BANDS = 64, 16
_PRIME = np.uint64((1 << 61) - 1)
_COMPARED = 4
_WORD = re.compile(r"\w+")


def near_duplicates(texts: Sequence[str], like: float = LIKE) -> list[tuple[int, int]]:
    """Pairs (earlier, later) whose sets of three-word shingles overlap by `like` or more (Jaccard).

    Candidates come from banded MinHash (Broder 1997), each compared exactly with the first and the last few
    of its bucket, so the time grows with the rows and not with their square. A pair that overlaps by 0.8 is
    missed about twice in ten thousand. Equal texts are pairs too.
    """
    if not texts:
        return []
    sets = [shingles(text) for text in texts]
    found = set()
    for bucket in _bands(np.stack([_signature(one) for one in sets])):
        for place, later in enumerate(bucket[1:], 1):
            others = {bucket[0], *bucket[max(0, place - _COMPARED) : place]}
            found |= {(one, later) for one in others if jaccard(sets[one], sets[later]) >= like}
    return sorted(found)


def shingles(text: str) -> frozenset[str]:
    """Runs of three words, without case and punctuation; shorter texts are one run."""
    words = _WORD.findall(text.lower())
    runs = (" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1)))
    return frozenset(runs)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared over all."""
    return len(one & other) / len(one | other) if one or other else 1.0


def _signature(found: frozenset[str]) -> NDArray[np.uint64]:
    digests = [int.from_bytes(hashlib.blake2b(one.encode(), digest_size=7).digest()) for one in found]
    values = np.array(digests or [0], dtype=np.uint64) & np.uint64((1 << 31) - 1)
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 1 << 30, (_HASHES, 2), dtype=np.uint64)
    mixed = (values[None] * factors[:, :1] + factors[:, 1:]) % _PRIME
    least: NDArray[np.uint64] = mixed.min(1)
    return least


def _bands(signatures: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Rows that agree on a band, in order."""
    width = _HASHES // _BANDS
    for band in range(_BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for row, signature in enumerate(signatures):
            buckets[signature[band * width : (band + 1) * width].tobytes()].append(row)
        yield from (rows for rows in buckets.values() if len(rows) > 1)
