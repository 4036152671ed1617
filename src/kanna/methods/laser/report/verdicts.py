"""What the reader sees first of edits: what was chosen, and what it came to on rows that chose nothing."""

from collections.abc import Sequence

from kanna.methods.laser.report.search import best, named
from kanna.methods.laser.report.tested import direction, interval, together, value
from kanna.reporting.blocks import At, Cell, Figure, Verdict
from kanna.reporting.views import Result
from kanna.reporting.wording import change

NO_EDIT = "no edit"


def titles(places: Sequence[At], what: str) -> list[str]:
    """A name for each result; the file is added where several are alike."""
    names = [f"LASER {what} of {at.data['model']['name']} on {at.data['task']['name']}" for at in places]
    return [
        f"{name} ({at.source})" if names.count(name) > 1 else name
        for name, at in zip(names, places, strict=True)
    ]


def of_search(result: Result, title: str) -> Verdict:
    """What was chosen; where the model as it is won, what was tested in its place, and why."""
    at = result.at
    test = at.get("test")
    if at.data["base_wins"]:
        return Verdict(NO_EDIT, title, _unbeaten(at), _tested_anyway(at), _because(at))
    chosen = at["chosen"]
    rank = chosen["rank"].figure(str(chosen.data["rank"]))
    why: Cell = (
        f"Chosen by the {at.data['settings']['rule']} rule from ",
        at["candidates"].figure(f"{at.data['candidates']:,}"),
        f" candidates: {named(chosen.data)}, which leaves rank ",
        rank,
        ".",
    )
    if test is None:
        return Verdict("not judged", title, "", "", why)
    return Verdict(direction(test.data), title, _headline(test, test.data["metric"]), _scores(test), why)


def of_composition(result: Result, title: str) -> Verdict:
    """How many steps were accepted, and what they came to; a model may hold fewer than all of them."""
    at, stage = result.at, _stage(result.lineage)
    test, tried = at.get("test"), len(at.data["stages"])
    if test is None:
        why = f"None of the {tried:,} edits tried makes the model better on validation rows."
        return Verdict(NO_EDIT, title, "No edit is better", "", why)
    why = f"{at.data['accepted']:,} of {tried:,} edits tried were accepted: {together(test.data['edits'])}."
    if stage is not None and stage.data != at.data["accepted"]:
        number = stage.figure(str(stage.data))
        partly: Cell = ("The model holds stage ", number, ", which was not tested. ", why)
        return Verdict("not judged", title, "", "", partly)
    return Verdict(direction(test.data), title, _headline(test, test.data["metric"]), _scores(test), why)


def _stage(lineage: At | None) -> At | None:
    """How many accepted edits a model holds, where `kanna laser restore --stage` wrote it."""
    steps = None if lineage is None else lineage["steps"].items()
    scores = steps[-1].get("scores") if steps else None
    return None if scores is None else scores.get("stage")


def of_analysis(result: Result, title: str) -> Verdict:
    """What the edits do on all rows of the task."""
    at = result.at
    metric, difference = at.data["metric"], at["difference"]
    before, after = (value(at["scores"][name], metric) for name in ("base", "top"))
    rows = at["task"]["rows"].figure(f"{at.data['task']['rows']:,}")
    weights: list[str | Figure] = [f"{metric} "]
    weights += [part for part in (before, " → ", after) if isinstance(part, str | Figure)]
    weights += [" on ", rows, " rows; interval ", *interval(difference, metric)]
    why = f"Edits: {together(at.data['edits'])}. All rows were scored, those that may have chosen them too."
    headline = _headline(difference, metric)
    return Verdict(direction(difference.data), title, headline, tuple(weights), why)


def _headline(at: At, metric: str) -> Cell:
    return at["difference"].figure(change(metric, at.data["difference"]))


def _scores(test: At) -> Cell:
    metric = test.data["metric"]
    before, after = (value(test[name], "value", metric) for name in ("base", "edit"))
    rows = test["rows"].figure(f"{test.data['rows']:,}")
    parts = (f"{metric} ", before, " → ", after, " on ", rows, " test rows; interval ")
    return (*(part for part in parts if isinstance(part, str | Figure)), *interval(test, metric))


def _better(at: At) -> bool:
    """Whether some edit scored higher on validation rows, and was kept out by a limit."""
    place = best(at.data)
    return place is not None and at.data["trials"][place]["accuracy"] > at.data["base"]["accuracy"]


def _unbeaten(at: At) -> str:
    return "No edit keeps the limits" if _better(at) else "No edit is better"


def _tested_anyway(at: At) -> Cell:
    """The most accurate edit, which was tested though it was not chosen."""
    test, place = at.get("test"), best(at.data)
    if test is None or place is None:
        return ""
    metric = test.data["metric"]
    moved = _headline(test, metric)
    assert isinstance(moved, Figure)
    edit = f"the most accurate one, {named(at.data['trials'][place])}, on test rows: "
    return (edit, moved, ", interval ", *interval(test, metric))


def _because(at: At) -> Cell:
    metric = at.data["task"]["metric"]
    tried = at["candidates"].figure(f"{at.data['candidates']:,}")
    if best(at.data) is None:
        return "No candidate was tried on all validation rows."
    if not _better(at):
        return (
            "None of ",
            tried,
            f" candidates has a higher validation score ({metric}) than the model as it is.",
        )
    return (
        f"Some have a higher validation score ({metric}), but a lower consistency or too high a perplexity; "
        "the model as it is stays."
    )
