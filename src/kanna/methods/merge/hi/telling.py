"""What was found, as it is written."""

from __future__ import annotations

from collections.abc import Sequence

from kanna.methods.merge.hi.contributions import Conflict, Impact
from kanna.methods.merge.hi.ranking import Ranked
from kanna.methods.merge.hi.resolving import Round
from kanna.methods.merge.hi.results import HiBlock, HiCell, HiExpert, HiImpact, HiPart, HiRound, HiStep
from kanna.methods.merge.hi.stage_one import Cell
from kanna.methods.merge.hi.state import Treatment


def expert_told(name: str, treatment: Treatment, cells: Sequence[Cell]) -> HiExpert:
    grid = tuple(
        HiCell(kept=one.kept, scale=one.scale, score=one.score, probability=one.probability) for one in cells
    )
    return HiExpert(name=name, kept=treatment.kept, scale=treatment.scale, grid=grid)


def round_told(found: Round, names: Sequence[str], tau: float | None) -> HiRound:
    return HiRound(
        blocks=tuple(block_told(one, names[one.place], tau) for one in found.conflicts),
        steps=tuple(
            HiStep(
                block=names[step.block],
                kind=step.kind,
                action=step.action,
                before=step.before,
                after=step.after,
                accepted=step.accepted,
            )
            for step in found.steps
        ),
    )


def block_told(found: Ranked, name: str, tau: float | None) -> HiBlock:
    own, merged = (found.own, found.merged) if isinstance(found, Conflict) else ((), ())
    return HiBlock(
        block=name,
        own=tuple(map(_impact, own)),
        merged=tuple(map(_impact, merged)),
        gamma=found.gamma,
        errors=found.errors,
        total=found.total,
        total_error=found.total_error,
        kind=found.kind(tau),
    )


def _impact(found: Impact) -> HiImpact:
    return HiImpact(alpha=found.alpha, beta=found.beta, contribution=found.contribution)


def part_told(name: str, row: Sequence[Treatment]) -> HiPart:
    return HiPart(block=name, kept=tuple(one.kept for one in row), scales=tuple(one.scale for one in row))
