"""Rows that say the same, or nearly."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kanna.tasks.data.units import plain, same

LIKE = 0.8
_SHINGLE = 3
_HASHES, _BANDS = 64, 16
_COMPARED = 16
# Runs of words in more than half of so many texts or more are the frame of an application's prompts.
_FRAMED = 20
# Chinese and Japanese have no spaces: each of their signs counts as a word.
_SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+")


def near_duplicates(texts: Sequence[str], like: float = LIKE) -> list[tuple[int, int]]:
    """Pairs (earlier, later) whose sets of three-word shingles overlap by `like` or more (Jaccard).

    Of equal texts, whichever way their accents are written, each is paired with the first only, and the
    others with that one. What most texts share, such as the instruction in every prompt, is not compared;
    see `compared`.

    Candidates come from banded MinHash (Broder 1997), each compared exactly with the first and the last few
    of its bucket, so the time grows with the rows and not with their square. A pair that overlaps by 0.8 is
    missed about twice in ten thousand.
    """
    texts = [plain(text) for text in texts]
    pairs = set(same(texts))
    places = sorted(set(range(len(texts))) - {later for _, later in pairs})
    sets = compared([texts[place] for place in places])
    checked: set[tuple[int, int]] = set()
    for bucket in _bands(_signatures(sets)):
        for place, later in enumerate(bucket[1:], 1):
            others = {bucket[0], *bucket[max(0, place - _COMPARED) : place]}
            for pair in {(other, later) for other in others} - checked:
                checked.add(pair)
                if jaccard(sets[pair[0]], sets[pair[1]]) >= like:
                    pairs.add((places[pair[0]], places[pair[1]]))
    return sorted(pairs)


def compared(texts: Sequence[str]) -> list[frozenset[str]]:
    """Shingles of each of these distinct texts, without those that more than half of twenty or more share.

    A text of nothing else keeps its own.
    """
    sets = [shingles(text) for text in texts]
    if len(sets) < _FRAMED:
        return sets
    counts = Counter(run for some in sets for run in some)
    frame = {run for run, count in counts.items() if count > len(sets) / 2}
    return [runs - frame or runs for runs in sets]


def shingles(text: str) -> frozenset[str]:
    """Runs of three words, without case and punctuation; shorter texts are one run."""
    words = _WORD.findall(plain(text.lower())) or [text.strip()]
    runs = (" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1)))
    return frozenset(runs)


def jaccard(first: frozenset[str], other: frozenset[str]) -> float:
    """Shared over all."""
    return len(first & other) / len(first | other) if first or other else 1.0


def _signatures(sets: Sequence[frozenset[str]]) -> Iterator[NDArray[np.uint64]]:
    """(hashes,) of each set: the least value of each hash function over its shingles.

    The functions are the upper half of a x + b modulo 2^64 for 32-bit x (Dietzfelbinger 1996). The modulus
    matters: without it all of them would order the shingles alike.
    """
    generator = np.random.default_rng(0)
    factors = generator.integers(0, 1 << 64, (_HASHES, 2), dtype=np.uint64)
    for runs in sets:
        digests = [int.from_bytes(hashlib.blake2b(run.encode(), digest_size=4).digest()) for run in runs]
        values = np.array(digests, dtype=np.uint64)
        mixed = (values[None] * factors[:, :1] + factors[:, 1:]) >> np.uint64(32)
        yield mixed.min(1)


def _bands(signatures: Iterator[NDArray[np.uint64]]) -> Iterator[list[int]]:
    """Rows that agree on a band, in order."""
    width = _HASHES // _BANDS
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row, signature in enumerate(signatures):
        for band in range(_BANDS):
            buckets[band, signature[band * width : (band + 1) * width].tobytes()].append(row)
    yield from (rows for rows in buckets.values() if len(rows) > 1)
