"""First stage: how many entries of an expert's difference stay, and how they are scaled, by its own task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kanna.methods.merge.hi.ground import Ground
from kanna.methods.merge.hi.state import Treatment, only
from kanna.progress import Progress


@dataclass(frozen=True)
class Cell:
    """A pair that was tried.

    Args:
        score: On the expert's own calibration rows.
        probability: Of the right answers; breaks ties.
    """

    kept: float
    scale: float
    score: float
    probability: float


def grids(
    ground: Ground, kept: Sequence[float], scales: Sequence[float], progress: Progress
) -> list[list[Cell]]:
    """For each expert every pair; the largest values first, which are taken where scores are equal."""
    found: list[list[Cell]] = []
    pairs = [(p, s) for p in sorted(kept, reverse=True) for s in sorted(scales, reverse=True)]
    total = len(pairs) * len(ground.experts)
    for expert in range(len(ground.experts)):
        cells: list[Cell] = []
        for p, s in pairs:
            progress("model-wise", len(found) * len(pairs) + len(cells), total)
            state = only(expert, Treatment(p, s), len(ground.experts), len(ground.blocks))
            scored = ground.score(state, expert)
            cells.append(Cell(p, s, scored.score, scored.probability))
        found.append(cells)
    progress("model-wise", total, total)
    return found


def chosen(cells: Sequence[Cell]) -> Treatment:
    """The best pair, the first of equals."""
    best = max(cells, key=lambda cell: (cell.score, cell.probability))
    return Treatment(best.kept, best.scale)
