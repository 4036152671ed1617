"""What a report shows of sets of scales: `VIEWS` is the door, everything else here lies behind it.

`sets` sets all of a directory side by side, `course` is how one was learnt, and how far its scales moved.
"""

from collections.abc import Sequence

from kanna.methods.peqa.report.course import course
from kanna.methods.peqa.report.sets import sets
from kanna.methods.peqa.results import Shelf, gather
from kanna.reporting.blocks import At, Section, Verdict
from kanna.reporting.views import Result, View


def _draw(results: Sequence[Result]) -> tuple[list[Verdict], list[Section]]:
    return [], [section for result in results for section in _sections(result.at)]


def _sections(shelf: At) -> list[Section]:
    together = Section(f"Sets of scales of {shelf.name}", sets(shelf))
    roles = shelf.data.get("roles") or ()
    each = [one["record"] for one in shelf["sets"].items()]
    drawn = [Section(f"Scales {at.data['name']} of {shelf.name}", course(at, roles)) for at in each]
    return [together, *drawn]


def _compared(shelf: At) -> list[At]:
    """Of each set that was judged, the comparison with the model as it was quantised."""
    scored = [(one.data["record"]["name"], one["record"].get("scores")) for one in shelf["sets"].items()]
    found = [(name, scores.get("comparison")) for name, scores in scored if scores is not None]
    return [_named(name, one) for name, one in found if one is not None]


def _named(name: str, compared: At) -> At:
    """A set is called by its model too: two models may have sets of one name, and of one size."""
    base, model = compared.data["base"], compared.data["model"]
    if model["model"] != name:
        return compared
    called = {**model, "model": f"{base['model']} + {name}"}
    return At(compared.name, {**compared.data, "model": called}, compared.path)


VIEWS: tuple[View, ...] = (View("scales", Shelf, _draw, gather=gather, key="scales", compared=_compared),)
