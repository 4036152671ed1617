"""How it went: bases by role over time, and the losses of both parts."""

from collections.abc import Sequence
from typing import Any

from kanna.methods.basel.report.shares import by_role, full_rank
from kanna.reporting.blocks import At, Chart
from kanna.reporting.curves import Curve, curves, smoothed

_PARTS = (("weights", "Loss while weights are learnt"), ("factors", "Loss of the factors"))


def course(at: At) -> list[Chart]:
    """Charts of what there was: bases where some were dropped, and each part that took place."""
    drawn = [_losses(at, part, title) for part, title in _PARTS if at.data[part] is not None]
    return [_bases(at), *drawn] if at.data["events"] else drawn


def _bases(at: At) -> Chart:
    """Mean number of bases of each role: as it was until an event, then what the event left."""
    data = at.data
    steps = len(data["weights"]["losses"]) if data["weights"] is not None else data["events"][-1]["step"]
    lines = []
    for role, places in by_role(data).items():
        first = sum(full_rank(data["matrices"][i]) for i in places) / len(places)
        counts = [
            (event["step"], sum(event["bases"][i] for i in places) / len(places)) for event in data["events"]
        ]
        points = _stairs(first, counts, steps)
        tip = f"{role}: {first:,.0f} bases at first, {points[-1][1]:,.1f} after the last event"
        lines.append(Curve(role, points, tip))
    drawing = curves(lines, "steps", "bases of a matrix, mean of the role")
    caption = "Mean number of bases of a matrix, new ones not counted. Each fall is an event."
    return Chart("Bases by role", drawing, caption, [line.tip for line in lines])


def _stairs(first: float, counts: Sequence[tuple[int, float]], steps: int) -> list[tuple[float, float]]:
    points, now = [(0.0, first)], first
    for step, count in counts:
        points += [(float(step), now), (float(step), count)]
        now = count
    return [*points, (float(max(steps, points[-1][0])), now)]


def _losses(at: At, part: str, title: str) -> Chart:
    data = at.data[part]
    losses = data["losses"]
    learnt = [(float(step), loss) for step, loss in enumerate(smoothed(losses), 1)]
    tip = f"learnt: {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last"
    lines = [Curve("learnt", learnt, tip)]
    if data["validation"]:
        lines.append(_held_out(data))
    marks = [float(event["step"]) for event in at.data["events"]] if part == "weights" else []
    drawing = curves(lines, "steps", "loss, nats a token", marks)
    caption = "Mean loss of the tokens of answers by steps, nats, smoothed over a tenth of them, ten at most"
    more = "; thin upright lines are events." if marks else "."
    stopped = f" Stopped early: {data['stopped']}." if data["stopped"] else ""
    return Chart(title, drawing, caption + more + stopped, [line.tip for line in lines])


def _held_out(data: dict[str, Any]) -> Curve:
    """Its tip says the loss of the state that was taken."""
    held = [(float(step), loss) for step, loss in data["validation"]]
    taken = data.get("held_out")
    taken = held[-1][1] if taken is None else taken
    return Curve("held out", held, f"rows that are not learnt: {taken:.4f} in the state that was taken")
