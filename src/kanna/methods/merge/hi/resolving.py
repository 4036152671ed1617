"""Third stage: blocks in conflict, the worst first; a change stays only if the merge is no worse with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kanna.methods.merge.hi.contributions import Conflict, conflicts
from kanna.methods.merge.hi.ground import Ground, mean_normalised
from kanna.methods.merge.hi.ranking import MUTUAL, SEVERE, Ranked
from kanna.methods.merge.hi.state import GONE, State, Treatment
from kanna.progress import Progress


@dataclass(frozen=True)
class Step:
    """What was tried in one block.

    Args:
        block: Its number.
        kind: severe or partial.
        action: What was tried, in words.
        before: Mean normalised score; None where no task is asked.
        after: With the step.
        accepted: Whether it is kept.
    """

    block: int
    kind: str
    action: str
    before: float | None
    after: float | None
    accepted: bool


@dataclass(frozen=True)
class Round:
    """One round.

    Args:
        conflicts: Of every block of the merge as it was at the beginning.
        steps: In the order in which they were tried.
    """

    conflicts: tuple[Ranked, ...]
    steps: tuple[Step, ...]

    @property
    def changed(self) -> bool:
        return any(step.accepted for step in self.steps)


@dataclass(frozen=True)
class Rules:
    """Args:
    tau: See `Conflict.hurt`.
    rounds: At most.
    """

    tau: float | None = None
    rounds: int = 3


def resolved(
    ground: Ground, experts: Sequence[Treatment], state: State, rules: Rules, progress: Progress
) -> tuple[State, list[Round]]:
    """A merge without the conflicts that could be resolved, and how it came about.

    Args:
        experts: How each is treated by itself, and where nothing is wrong.
        state: The merge to begin with.
    """
    rounds: list[Round] = []
    for _ in range(rules.rounds):
        found = conflicts(ground, experts, state, progress)
        steps: list[Step] = []
        ordered = sorted(found, key=lambda one: (-one.total, one.block))
        for number, conflict in enumerate(ordered):
            progress("layer-wise", number, len(ordered))
            state, step = _tried(ground, experts, state, conflict, rules.tau)
            steps += [] if step is None else [step]
        progress("layer-wise", len(ordered), len(ordered))
        rounds.append(Round(tuple(found), tuple(steps)))
        if not rounds[-1].changed:
            break
    return state, rounds


def _tried(
    ground: Ground, experts: Sequence[Treatment], state: State, conflict: Conflict, tau: float | None
) -> tuple[State, Step | None]:
    """The state with one step, if that is no worse; no step where there is nothing to do."""
    row, action = action_for(ground.experts, experts, state.rows[conflict.block], conflict, tau)
    trial = state.replaced(conflict.block, row)
    if trial.key == state.key:
        return state, None
    before, after = mean_normalised(ground, state), mean_normalised(ground, trial)
    accepted = after >= before
    step = Step(conflict.block, conflict.kind(tau), action, before, after, accepted)
    return (trial if accepted else state), step


def action_for(
    names: Sequence[str],
    experts: Sequence[Treatment],
    row: Sequence[Treatment],
    conflict: Ranked,
    tau: float | None,
) -> tuple[tuple[Treatment, ...], str]:
    """The treatments of a block that resolve its conflict, and what is done, in words."""
    kind = conflict.kind(tau)
    if kind == MUTUAL:
        return tuple(row), ""
    if kind == SEVERE:
        best = conflict.strongest
        left = experts[best] if row[best] == GONE else row[best]
        return tuple(left if index == best else GONE for index in range(len(row))), f"{names[best]} alone"
    hurt = conflict.hurt(tau)
    pruned = tuple(
        one if hurt[index] or one == GONE else experts[index].halved for index, one in enumerate(row)
    )
    offenders = [names[index] for index, _ in enumerate(row) if not hurt[index]]
    return pruned, f"{', '.join(offenders)} pruned and scaled again"
