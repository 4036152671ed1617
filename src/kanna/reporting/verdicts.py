"""What the reader sees first: how much smaller each model is, whether it is still right, and who says so."""

from collections.abc import Sequence

from kanna.reporting.blocks import At, Cell, Evidence, Figure, Verdict
from kanna.reporting.wording import change, shown, size

NOT_JUDGED = "not judged"
_NOTHING = Verdict(
    NOT_JUDGED,
    "No verdict",
    "",
    "",
    "Nothing here compares a model with its base. "
    "Do it with: kanna compare BASE MODEL --task FILE --max-drop 1% --out DIR",
)
_UNASKED = (
    "This model was not compared with its base on a task. "
    "Do it with: kanna compare BASE MODEL --task FILE --max-drop 1% --out DIR"
)


def verdicts(compared: Sequence[At], models: Sequence[At], others: Sequence[Verdict] = ()) -> list[Verdict]:
    """One per comparison, the others, one per model that nobody compared; at least one."""
    asked = {at.data["model"]["model"] for at in compared}
    found = [verdict(at, title) for at, title in zip(compared, titles(compared), strict=True)]
    found += others
    found += [_unasked(at) for at in models if at.name not in asked]
    return found or [_NOTHING]


def titles(compared: Sequence[At]) -> list[str]:
    """A name for each comparison; the file is added where two models were compared more than once."""
    names = [f"{at.data['model']['model']} against {at.data['base']['model']}" for at in compared]
    return [
        f"{name} ({at.name})" if names.count(name) > 1 else name
        for name, at in zip(names, compared, strict=True)
    ]


def smaller(new: At, base: At) -> Figure:
    """How much smaller in words; the number is the share that is left."""
    saved = 100 * (1 - new.data / base.data)
    said = f"{abs(saved):.1f} %"
    if float(f"{saved:.1f}") == 0:
        return new.over(base, "same size")
    return new.over(base, f"{said} smaller" if saved > 0 else f"{said} larger")


def _weights(new: At, base: At) -> Cell:
    return (base.figure(size(base.data)), " → ", new.figure(size(new.data)), " of weights")


def verdict(at: At, title: str) -> Verdict:
    """Of one comparison."""
    new, base = at["model"]["bytes"], at["base"]["bytes"]
    evidence = [_evidence(task) for task in at["tasks"].items()]
    why = f"Why: {at.data['explanation']}."
    return Verdict(at.data["status"], title, smaller(new, base), _weights(new, base), why, evidence)


def _evidence(task: At) -> Evidence:
    metric, decision = task.data["metric"], task.get("decision")
    scores: list[str | Figure] = [
        f"{metric} ",
        task["base"].figure(shown(metric, task.data["base"])),
        " → ",
        task["new"].figure(shown(metric, task.data["new"])),
        " on ",
        task["rows"].figure(f"{task.data['rows']:,}"),
        " rows",
    ]
    status = NOT_JUDGED if decision is None else decision.data["status"]
    said = scores if decision is None else [*scores, "; change ", *_judged(decision, metric)]
    name = f"{task.data['task']} (guard)" if task.data["guard"] else task.data["task"]
    return Evidence(status, name, tuple(said))


def _judged(decision: At, metric: str) -> list[str | Figure]:
    low, high = decision["interval"].items()
    return [
        decision["difference"].figure(change(metric, decision.data["difference"])),
        " (interval ",
        low.figure(change(metric, low.data)),
        " to ",
        high.figure(change(metric, high.data)),
        "), allowed ",
        decision["allowed"].figure(change(metric, decision.data["allowed"])),
    ]


def _unasked(at: At) -> Verdict:
    steps = at["lineage"]["steps"].items()
    sized = [step["scores"] for step in steps if step.get("scores") is not None]
    before = [one["model_bytes_before"] for one in sized if one.get("model_bytes_before") is not None]
    after = [one["model_bytes_after"] for one in sized if one.get("model_bytes_after") is not None]
    base = at["lineage"].data["base"]["name"]
    if not before or not after:
        return Verdict(NOT_JUDGED, f"{at.name} from {base}", "", "", _UNASKED)
    weights = _weights(after[-1], before[0])
    return Verdict(NOT_JUDGED, f"{at.name} from {base}", smaller(after[-1], before[0]), weights, _UNASKED)
