"""What a run has done, in figures, tables and sentences."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from kanna.methods.basel.execute import Outcome
from kanna.methods.basel.forecast import span
from kanna.methods.basel.plan import Plan
from kanna.methods.basel.record import held_out_loss, notes, stored
from kanna.models.matrix import role_key
from kanna.reporting.blocks import MEASURED, Table
from kanna.reporting.wording import percent
from kanna.training.loop import Trained

_MOST_NAMED = 12


def figures(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """For the lineage."""
    left = sum(stored(plan, outcome.ranks).values())
    parts = [part for part in (outcome.part_1, outcome.part_2) if part is not None]
    found: dict[str, Any] = {
        "keep_selected": left / plan.parameters,
        "keep_model": plan.rest + left / plan.inventory.parameters,
        "least_keep_model": plan.rest,
        "matrices_selected": len(plan.selected),
        "ranks": {name: rank for name, rank in outcome.ranks.items() if rank is not None},
        "dense": sorted(name for name, rank in outcome.ranks.items() if rank is None),
        "events": len(outcome.history),
        "steps": sum(len(part.losses) for part in parts),
        "training_loss": outcome.last.losses[-1],
    }
    if outcome.curved[0]:
        found["negative_curvatures"] = outcome.curved[1] / outcome.curved[0]
    if outcome.last.validation:
        found["validation_loss"] = held_out_loss(outcome.last)
    if (lost := outcome.forgotten) is not None:
        found |= {"text_loss_before": lost.before, "text_loss_after": lost.after, "text_tokens": lost.tokens}
    return found


def lines(plan: Plan, outcome: Outcome) -> Iterator[str]:
    """For the console."""
    told = figures(plan, outcome)
    kept, model, least = told["keep_selected"], told["keep_model"], told["least_keep_model"]
    yield f"selected matrices: {percent(kept)} of {plan.parameters:,} parameters kept ({1 / kept:.1f}x fewer)"
    best = f", {1 / least:.1f}x" if least > 0 else ""
    yield (
        f"whole model: {percent(model)} of {plan.inventory.parameters:,} parameters kept ({1 / model:.1f}x "
        f"fewer); with nothing left of these matrices it would be {percent(least)}{best}"
    )
    if told["dense"]:
        yield f"stored dense, since factors would not be smaller: {_named(told['dense'])}"
    for what, part in (("weights of bases", outcome.part_1), ("factors", outcome.part_2)):
        if part is not None:
            yield _trained(what, part)
    yield from notes(plan, outcome)
    if (lost := outcome.forgotten) is not None:
        yield (
            f"text that was not learnt ({lost.tokens:,} tokens): loss {lost.before:.4f} before, "
            f"{lost.after:.4f} after"
        )


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _trained(what: str, trained: Trained) -> str:
    best = f", on rows that were not learnt {held_out_loss(trained):.4f}" if trained.validation else ""
    best += "" if trained.best else " (no step was better than what it began with, which is kept)"
    stopped = f"; stopped early: {trained.stopped}" if trained.stopped else ""
    first, last = trained.losses[0], trained.losses[-1]
    return f"{what}: {len(trained.losses)} steps, loss {first:.4f} to {last:.4f}{best}{stopped}"


def table(plan: Plan, outcome: Outcome) -> Table:
    """By role: bases before and after, and what is left."""
    roles: dict[str, list[str]] = defaultdict(list)
    for matrix in plan.selected:
        roles[matrix.role].append(matrix.name)
    counts = stored(plan, outcome.ranks)
    rows = []
    for role in sorted(roles, key=role_key):
        names = roles[role]
        ranks = [rank for name in names if (rank := outcome.ranks[name]) is not None]
        full = [min(plan.sizes[name].m, plan.sizes[name].n) for name in names]
        share = sum(counts[name] for name in names) / sum(plan.sizes[name].dense for name in names)
        dense = str(len(names) - len(ranks))
        rows.append((role, str(len(names)), span(full), span(ranks), dense, percent(share)))
    columns = ("role", ">matrices", ">bases before", ">rank after", ">stay dense", ">kept")
    return Table("Bases by role", columns, rows, MEASURED)
