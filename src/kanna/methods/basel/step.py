"""The step `basel`: what the runner asks of it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kanna.checkpoint.writer import write_json
from kanna.methods.basel.config import BaselConfig
from kanna.methods.basel.execute import Outcome, execute
from kanna.methods.basel.plan import Plan, make_plan
from kanna.methods.basel.results import RESULT, Basel, Event, MatrixOutcome, Part
from kanna.models.matrix import role_key
from kanna.reporting.blocks import MEASURED, Table
from kanna.reporting.wording import percent
from kanna.runs.source import Source
from kanna.runs.step import Changes, Description, Inputs, Job, Step
from kanna.training.loop import Trained


@dataclass(frozen=True)
class BaselChanges(Changes):
    """Changes, and how they were learnt; None where there was nothing to learn."""

    outcome: Outcome | None = field(default=None)


class BaselStep(Step[Plan]):
    """Dense models only: factors have lost the bases that are to be chosen from."""

    accepts = ("dense",)
    instead = "start from the model before: bases that were dropped cannot be chosen any more"

    def plan(self, source: Source, config: BaselConfig, inputs: Inputs) -> Plan:
        return make_plan(source, config, inputs)

    def apply(self, plan: Plan, job: Job) -> BaselChanges:
        if plan.changes_nothing:
            return BaselChanges()
        outcome = execute(job, plan)
        shapes = {name: (value.dtype, tuple(value.shape)) for name, value in outcome.tensors.items()}
        return BaselChanges(
            forms=outcome.forms,
            shapes=shapes,
            tensors=lambda: iter(outcome.tensors.items()),
            finish=lambda directory: write_json(directory / RESULT, _result(plan, outcome, job).to_dict()),
            recorded=outcome.recorded,
            outcome=outcome,
        )

    def describe(self, plan: Plan, changes: Changes) -> Description:
        assert isinstance(changes, BaselChanges)
        outcome = changes.outcome
        if outcome is None:
            return Description("All bases of {base} kept: nothing is changed.", {"keep_selected": 1.0})
        figures = _figures(plan, outcome)
        parts = (("weights of bases", outcome.part_1), ("factors", outcome.part_2))
        lines = [_told(what, trained) for what, trained in parts if trained is not None] + _notes(outcome)
        rows = (
            ("parameters of the selected matrices kept", f"{figures['keep_selected']:.4f}"),
            ("rows learnt", f"{len(plan.data.train):,}"),
        )
        return Description(
            summary="Bases of the weight matrices of {base} chosen by what a task needs, and trained on it.",
            figures=figures,
            rows=rows,
            tables=(_table(plan, outcome),),
            console=(_table(plan, outcome),),
            lines=tuple(lines),
            tags=("low-rank", "fine-tuned"),
        )


def _figures(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "keep_selected": sum(_stored(plan, outcome.ranks).values()) / plan.parameters,
        "matrices_selected": len(plan.selected),
        "ranks": {name: rank for name, rank in outcome.ranks.items() if rank is not None},
        "dense": sorted(name for name, rank in outcome.ranks.items() if rank is None),
        "events": len(outcome.history),
        "steps": sum(len(part.losses) for part in (outcome.part_1, outcome.part_2) if part is not None),
        "training_loss": outcome.last.losses[-1],
    }
    if outcome.curved[0]:
        figures["negative_curvatures"] = outcome.curved[1] / outcome.curved[0]
    if validation := outcome.last.validation:
        figures["validation_loss"] = min(loss for _, loss in validation)
    return figures


def _stored(plan: Plan, ranks: Mapping[str, int | None]) -> dict[str, int]:
    """Matrix -> parameters."""
    return {
        name: plan.sizes[name].dense if rank is None else rank * (plan.sizes[name].m + plan.sizes[name].n)
        for name, rank in ranks.items()
    }


def _result(plan: Plan, outcome: Outcome, job: Job) -> Basel:
    """For the report."""
    stored = _stored(plan, outcome.ranks)
    matrices = tuple(
        MatrixOutcome(
            name=matrix.name,
            role=matrix.role,
            layer=matrix.layer,
            out_features=matrix.out_features,
            in_features=matrix.in_features,
            rank=outcome.ranks[matrix.name],
            kept=stored[matrix.name] / matrix.parameters,
        )
        for matrix in plan.selected
    )
    return Basel(
        model=job.source.name,
        importance=plan.config.importance,
        parameters=plan.parameters,
        keep_selected=sum(stored.values()) / plan.parameters,
        rows=len(plan.data.train),
        matrices=matrices,
        events=tuple(Event(step=step, bases=tuple(kept.values())) for step, kept in outcome.history),
        weights=_part(outcome.part_1),
        factors=_part(outcome.part_2),
        notes=tuple(_notes(outcome)),
    )


def _notes(outcome: Outcome) -> list[str]:
    """What the reader must know of the measuring."""
    looked, below = outcome.curved
    if not looked:
        return []
    return [f"curvature: {below:,} of {looked:,} measured at the events were below 0 and count as 0"]


def _part(trained: Trained | None) -> Part | None:
    if trained is None:
        return None
    return Part(losses=trained.losses, validation=trained.validation, stopped=trained.stopped)


def _told(what: str, trained: Trained) -> str:
    validation = [loss for _, loss in trained.validation]
    best = f", on rows that were not learnt {min(validation):.4f}" if validation else ""
    stopped = f"; stopped early: {trained.stopped}" if trained.stopped else ""
    first, last = trained.losses[0], trained.losses[-1]
    return f"{what}: {len(trained.losses)} steps, loss {first:.4f} to {last:.4f}{best}{stopped}"


def _table(plan: Plan, outcome: Outcome) -> Table:
    """By role: bases before and after, and what is left."""
    roles: dict[str, list[str]] = defaultdict(list)
    for matrix in plan.selected:
        roles[matrix.role].append(matrix.name)
    stored = _stored(plan, outcome.ranks)
    rows = []
    for role in sorted(roles, key=role_key):
        names = roles[role]
        ranks = [rank for name in names if (rank := outcome.ranks[name]) is not None]
        before = min(plan.sizes[names[0]].m, plan.sizes[names[0]].n)
        share = sum(stored[name] for name in names) / sum(plan.sizes[name].dense for name in names)
        shown = f"{min(ranks)} to {max(ranks)}" if ranks else "-"
        rows.append((role, str(before), shown, str(len(names) - len(ranks)), percent(share)))
    return Table("Bases by role", ("role", ">before", ">rank after", ">stay dense", ">kept"), rows, MEASURED)


STEP = BaselStep()
