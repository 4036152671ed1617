"""What the reader sees first: how much smaller each model is, whether it is still right, and who says so."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kanna.reporting.blocks import At, Cell, Evidence, Figure, Verdict
from kanna.reporting.cheaper import cheaper
from kanna.reporting.wording import difference, interval, size, told_apart, units
from kanna.reporting.words import term
from kanna.tasks.metrics.shown import change, shown

NOT_JUDGED = "not judged"
_NOTHING = Verdict(
    NOT_JUDGED,
    "No verdict",
    "",
    "",
    "Nothing here compares a model with its base. "
    "Do it with: kanna compare BASE MODEL --task FILE --max-drop 1% --out DIR",
)
# Status -> what to do now.
_NEXT = {
    "fail": " Next: keep more, or leave out what does the harm: kanna compare with --blame names the "
    "matrices, and --select 'all,!ROLE@LAYER' keeps them whole.",
    "empty": " Next: see with kanna eval what the base answers, and give prompts and choices that it knows; "
    "more rows do not help.",
}
_BLAME = (
    " Or leave out what does the harm: kanna compare with --blame names the matrices, and --select "
    "'all,!ROLE@LAYER' keeps them whole."
)
_UNASKED = (
    "This model was not compared with its base on a task. "
    "Do it with: kanna compare BASE MODEL --task FILE --max-drop 1% --out DIR"
)


def verdicts(
    compared: Sequence[At],
    models: Sequence[At],
    others: Sequence[Verdict] = (),
    benches: Sequence[At] = (),
) -> list[Verdict]:
    """One per comparison, the others, one per model that nobody compared; at least one."""
    asked = {at.data["model"]["model"] for at in compared}
    cards = [
        replace(verdict(at, title), cheaper=_cost(at, benches))
        for at, title in zip(compared, titles(compared), strict=True)
    ]
    cards += [*others, *(_unasked(at) for at in models if at.name not in asked)]
    return cards or [_NOTHING]


def _cost(at: At, benches: Sequence[At]) -> Cell:
    new, base = ((at.data[side]["model"], at.data[side]["bytes"]) for side in ("model", "base"))
    return cheaper(new, base, benches)


def titles(compared: Sequence[At]) -> list[str]:
    """A name for each comparison; the file is added where two models were compared more than once."""
    names = [f"{at.data['model']['model']} against {at.data['base']['model']}" for at in compared]
    return told_apart(names, (at.name for at in compared))


def smaller(new: At, base: At) -> Figure:
    """How much smaller in words; the number is the share that is left."""
    saved = 100 * (1 - new.data / base.data)
    share = f"{abs(saved):.1f} %"
    if float(f"{saved:.1f}") == 0:
        return new.over(base, "same size")
    return new.over(base, f"{share} smaller" if saved > 0 else f"{share} larger")


def _weights(new: At, base: At) -> Cell:
    return (base.figure(size(base.data)), " → ", new.figure(size(new.data)), " of weights")


def verdict(at: At, title: str) -> Verdict:
    """Of one comparison."""
    new, base = at["model"]["bytes"], at["base"]["bytes"]
    evidence = [_evidence(task) for task in at["tasks"].items()]
    why = f"Why: {at.data['explanation']}.{_next(at.data)}"
    return Verdict(at.data["status"], title, smaller(new, base), _weights(new, base), why, evidence)


def _next(data: Mapping[str, Any]) -> str:
    """What to try, where this run can say; else in general."""
    steps = data.get("next_steps") or ()
    if not steps:
        return _NEXT.get(data["status"], "")
    blame = "" if data.get("blame") is not None else _BLAME
    return f" Next: {'; '.join(steps)}.{blame}"


def _evidence(task: At) -> Evidence:
    metric, decision = task.data["metric"], task.get("decision")
    base, new = (task.cell(key, partial(shown, metric)) for key in ("base", "new"))
    sentence = [
        term(metric),
        " ",
        base,
        " → ",
        new,
        " on ",
        task.cell("rows"),
        f" {units(task.data['kind'])}",
    ]
    if decision is not None:
        sentence += ["; change ", difference(decision, metric), " (interval ", *interval(decision, metric)]
        sentence += ["), allowed ", decision.cell("allowed", partial(change, metric))]
    status = NOT_JUDGED if decision is None else decision.data["status"]
    return Evidence(status, guarded(task.data), tuple(sentence))


def guarded(task: Mapping[str, Any]) -> str:
    """A task's name, and whether it is a guard."""
    return f"{task['task']} (guard)" if task["guard"] else str(task["task"])


def _unasked(at: At) -> Verdict:
    steps = at["lineage"]["steps"].items()
    sized = [step["scores"] for step in steps if step.get("scores") is not None]
    before, after = (
        [place for scores in sized if (place := scores.get(key)) is not None]
        for key in ("model_bytes_before", "model_bytes_after")
    )
    base = at["lineage"].data["base"]["name"]
    if not before or not after:
        return Verdict(NOT_JUDGED, f"{at.name} from {base}", "", "", _UNASKED)
    weights = _weights(after[-1], before[0])
    return Verdict(NOT_JUDGED, f"{at.name} from {base}", smaller(after[-1], before[0]), weights, _UNASKED)
