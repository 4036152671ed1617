"""What the reader sees first of edits: what was chosen, and what it came to on rows that chose nothing."""

from collections.abc import Sequence

from kanna.methods.laser.report.search import best, named
from kanna.methods.laser.report.tested import direction, value
from kanna.reporting.blocks import At, Cell, Figure, Verdict
from kanna.reporting.verdicts import NOT_JUDGED
from kanna.reporting.views import Result
from kanna.reporting.wording import difference, interval, told_apart

NO_EDIT = "no edit"


def titles(places: Sequence[At], what: str) -> list[str]:
    """A name for each result; the file is added where several are alike."""
    names = [f"LASER {what} of {at.data['model']['name']} on {at.data['task']['name']}" for at in places]
    return told_apart(names, (at.source for at in places))


def of_search(result: Result, title: str) -> Verdict:
    """What was chosen; where the model as it is won, what was tested in its place, and why."""
    at = result.at
    test = at.get("test")
    if at.data["base_wins"]:
        headline = "No edit keeps the limits" if _better(at) else "No edit is better"
        return Verdict(NO_EDIT, title, headline, _tested_anyway(at), _because(at))
    chosen = at["chosen"]
    why: Cell = (
        f"Chosen by the {at.data['settings']['rule']} rule from ",
        at.cell("candidates"),
        f" candidates: {named(chosen.data)}, which leaves rank ",
        chosen.cell("rank", "d"),
        ".",
    )
    return Verdict(NOT_JUDGED, title, "", "", why) if test is None else _judged(test, title, why)


def of_composition(result: Result, title: str) -> Verdict:
    """How many steps were accepted, and what they came to; a model may hold fewer than all of them."""
    at, stage = result.at, _stage(result.lineage)
    test, tried = at.get("test"), len(at.data["stages"])
    if test is None:
        why = f"None of the {tried:,} edits tried makes the model better on validation rows."
        return Verdict(NO_EDIT, title, "No edit is better", "", why)
    edits = " + ".join(test.data["edits"])
    why = f"{at.data['accepted']:,} of {tried:,} edits tried were accepted: {edits}."
    if stage is not None and stage.data != at.data["accepted"]:
        number = stage.figure(str(stage.data))
        partly: Cell = ("The model holds stage ", number, ", which was not tested. ", why)
        return Verdict(NOT_JUDGED, title, "", "", partly)
    return _judged(test, title, why)


def _judged(test: At, title: str, why: Cell) -> Verdict:
    """By the test rows."""
    metric = test.data["metric"]
    scores = [value(test[name], "value", metric) for name in ("base", "edit")]
    rows = (test.cell("rows"), " test rows")
    return Verdict(
        direction(test.data), title, difference(test, metric), _from_to(test, metric, scores, rows), why
    )


def _from_to(at: At, metric: str, scores: Sequence[str | Figure], rows: Sequence[str | Figure]) -> Cell:
    before, after = scores
    return (f"{metric} ", before, " → ", after, " on ", *rows, "; interval ", *interval(at, metric))


def _stage(lineage: At | None) -> At | None:
    """How many accepted edits a model holds, where `kanna laser restore --stage` wrote it."""
    steps = None if lineage is None else lineage["steps"].items()
    scores = steps[-1].get("scores") if steps else None
    return None if scores is None else scores.get("stage")


def of_analysis(result: Result, title: str) -> Verdict:
    """What the edits do on all rows of the task."""
    at = result.at
    metric, decision = at.data["metric"], at["difference"]
    scores = [value(at["scores"][name], metric) for name in ("base", "top")]
    weights = _from_to(decision, metric, scores, (at["task"].cell("rows"), " rows"))
    edits = " + ".join(at.data["edits"])
    why = f"Edits: {edits}. All rows were scored, those that may have chosen them too."
    return Verdict(direction(decision.data), title, difference(decision, metric), weights, why)


def _better(at: At) -> bool:
    """Whether some edit scored higher on validation rows, and was kept out by a limit."""
    place = best(at.data)
    return place is not None and at.data["trials"][place]["accuracy"] > at.data["base"]["accuracy"]


def _tested_anyway(at: At) -> Cell:
    """The most accurate edit, which was tested though it was not chosen."""
    test, place = at.get("test"), best(at.data)
    if test is None or place is None:
        return ""
    metric = test.data["metric"]
    edit = f"the most accurate one, {named(at.data['trials'][place])}, on test rows: "
    return (edit, difference(test, metric), ", interval ", *interval(test, metric))


def _because(at: At) -> Cell:
    metric = at.data["task"]["metric"]
    if best(at.data) is None:
        return "No candidate was tried on all validation rows."
    if not _better(at):
        return (
            "None of ",
            at.cell("candidates"),
            f" candidates has a higher validation score ({metric}) than the model as it is.",
        )
    return (
        f"Some have a higher validation score ({metric}), but a lower consistency or too high a perplexity; "
        "the model as it is stays."
    )
