"""Which rows say the same, and which stand or fall together."""

import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence


def plain(text: str) -> str:
    """A text as it is compared with others: composed and decomposed accents, which look alike, are one."""
    return unicodedata.normalize("NFC", text)


def same(keys: Sequence[Hashable | None]) -> list[tuple[int, int]]:
    """Pairs (first, later) of places with the same key; a place without one, None, is like no other."""
    first: dict[Hashable, int] = {}
    pairs = [(first.setdefault(key, i), i) for i, key in enumerate(keys) if key is not None]
    return [(one, other) for one, other in pairs if one != other]


def together(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Places 0 to `count` - 1 in units, joined by pairs; units and places in order."""
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for place, other in pairs:
        first, second = sorted((root(place), root(other)))
        parent[second] = first
    units: dict[int, list[int]] = defaultdict(list)
    for place in range(count):
        units[root(place)].append(place)
    return list(units.values())
