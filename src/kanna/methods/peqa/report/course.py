"""How one set was learnt: losses over steps with the best state marked, and how far scales moved."""

import math
from collections.abc import Sequence

from kanna.reporting import moved
from kanna.reporting.blocks import At, Block, Chart, Paragraph
from kanna.reporting.curves import Curve, curves, smoothed


def course(record: At, roles: Sequence[str] = ()) -> list[Block]:
    """A sentence, and the charts of what is recorded.

    Args:
        roles: That the inventory had, where they are told.
    """
    scores = record.get("scores")
    drawn: list[Block] = []
    if scores is not None and scores.data.get("losses"):
        drawn += [Paragraph(_how_it_ended(scores)), _losses(record, scores)]
    return [*drawn, *_moved(record, roles)]


def _how_it_ended(scores: At) -> list[str]:
    best, losses = scores.data.get("best_step"), scores.data["losses"]
    stopped = scores.data.get("stopped")
    steps = f"{len(losses):,} steps; stopped early: {stopped}." if stopped else f"{len(losses):,} steps."
    if not scores.data.get("validation"):
        return [f"{steps} No rows were held out; the last state is kept."]
    held = dict(scores.data["validation"])
    more = f", but more than the {held[0]:.4f} before" if held.get(0, math.inf) < held[best] else ""
    return [
        f"{steps} Kept is the state after step {best:,}: its loss on rows that were not learnt, "
        f"{held[best]:.4f}, is the least of all steps{more}."
    ]


def _losses(record: At, scores: At) -> Chart:
    losses = scores.data["losses"]
    learnt = [(float(step), loss) for step, loss in enumerate(smoothed(losses), 1)]
    tip = f"learnt: {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last"
    lines = [Curve("learnt", learnt, tip)]
    held = [(float(step), loss) for step, loss in scores.data.get("validation") or []]
    marks = []
    if held:
        best = next(one for one in held if one[0] == scores.data["best_step"])
        tip = f"rows that are not learnt: {held[0][1]:.4f} at first, {best[1]:.4f} at step {best[0]:.0f}"
        lines.append(Curve("held out", held, tip))
        marks = [best[0]]
    drawing = curves(lines, "steps", "loss, nats a token", marks)
    more = "; the thin upright line is the state that was kept." if marks else "."
    caption = f"{_learnt(record)}, smoothed over a tenth of them, ten at most{more}"
    return Chart("Loss while scales learn", drawing, caption, [line.tip for line in lines])


def _learnt(record: At) -> str:
    """What the line of what is learnt is of; rows that are held out are always scored by their answers."""
    config = record.data.get("config") or {}
    text = " and of replayed text" if config.get("replay") else ""
    if config.get("loss") == "kl":
        return (
            f"Learnt: distance to the teacher, nats a token of answers{text}; held out: loss of the answers"
        )
    return f"Mean loss of the tokens of answers{text}, nats"


def _moved(record: At, roles: Sequence[str]) -> list[Chart]:
    found = record.data.get("moved") or {}
    rows = [{"path": path, "mean": mean, "most": most} for path, (mean, most) in found.items()]
    rows.sort(key=lambda row: (-row["mean"], row["path"]))
    return [moved.chart("How far scales moved", rows, ">scales moved by", roles)] if rows else []
