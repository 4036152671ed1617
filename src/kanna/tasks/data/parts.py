"""Rows in parts, of which candidates may be tried on as many as they deserve; groups stay together."""

from collections.abc import Sequence

import numpy as np

from kanna.tasks.data.rows import Row


def by_groups(rows: Sequence[Row], places: Sequence[int], seed: int) -> list[list[int]]:
    """Places in groups that stay together, the groups in a random order drawn with `seed`."""
    groups: dict[str, list[int]] = {}
    for place in places:
        groups.setdefault(rows[place].group or f"#{place}", []).append(place)
    ordered = list(groups.values())
    return [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]


def parts_of(groups: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[list[int]]:
    """Groups dealt out to parts that end where their rows reach each of `sizes`, the rest to a last one."""
    parts: list[list[int]] = [[]]
    filled = 0
    bounds = list(sizes)
    for group in groups:
        if bounds and filled >= bounds[0]:
            bounds.pop(0)
            parts.append([])
        parts[-1] += group
        filled += len(group)
    return parts
