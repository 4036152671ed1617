"""From results to the blocks of a page."""

from collections.abc import Sequence
from typing import Any

from kanna.reporting import costs
from kanna.reporting.benches import in_time
from kanna.reporting.blocks import At, Page
from kanna.reporting.comparison import comparison, evaluation
from kanna.reporting.lineage import lineage
from kanna.reporting.made import made
from kanna.reporting.overview import overview
from kanna.reporting.sources import Source
from kanna.reporting.verdicts import titles, verdicts
from kanna.reporting.views import Result, View
from kanna.reporting.words import words


def page(sources: Sequence[Source], title: str, views: Sequence[View] = ()) -> Page:
    """The page of all sources: verdicts, overview, then each result with its tables."""
    places = [(source, At(source.name, source.data)) for source in sources]
    compared = comparisons(places, views)
    benches = [at for source, at in places if source.kind == "bench"]
    models = [at for source, at in places if source.kind == "model"]
    drawn = [view.draw(results(sources, view)) for view in views]
    tested = [card for cards, _ in drawn for card in cards]
    # A model whose directory holds how it was found may have a card of that.
    carded = [view.key for view, (cards, _) in zip(views, drawn, strict=True) if view.key and cards]
    unseen = [at for at in models if not any(at.get(key) for key in carded)]
    first = overview(compared, in_time(benches))
    sections = [
        *(comparison(at, name) for at, name in zip(compared, titles(compared), strict=True)),
        *(section for _, group in drawn for section in group),
        *(evaluation(at) for source, at in places if source.kind == "eval"),
        *(costs.bench(at) for at in benches),
    ]
    cards = verdicts(compared, unseen, tested, in_time(benches))
    # What ends a page ends its print, too: not with a legend alone.
    sections = [*first, *sections, *words(cards, [*first, *sections]), *map(lineage, models)]
    data = {source.name: source.data for source in sources}
    return Page(title, cards, sections, made(sources), data)


def results(sources: Sequence[Source], view: View) -> list[Result]:
    """Those that a view draws: files of their own, and those in model directories."""
    drawn = []
    for source in sources:
        at = At(source.name, source.data)
        if source.kind == view.kind:
            drawn.append(Result(at))
        elif source.kind == "model" and view.key and (inside := at.get(view.key)):
            drawn.append(Result(inside, at["lineage"]))
        elif source.kind == "model" and view.step:
            steps = at["lineage"]["steps"].items()
            drawn += [Result(step, at["lineage"]) for step in steps if step.data["method"] == view.step]
    return drawn


def comparisons(places: Sequence[tuple[Source, At]], views: Sequence[View] = ()) -> list[At]:
    """Those that `kanna compare` wrote, and those in model directories of what it did not look at."""
    compared = [at for source, at in places if source.kind == "compare"]
    known = {_names(at) for at in compared}
    for source, at in places:
        if source.kind == "model":
            compared += [one for one in _held(at, views) if _names(one) not in known]
    return compared


def _held(at: At, views: Sequence[View]) -> list[At]:
    """Comparisons in a model directory: of its steps, and what else views know of."""
    scored = [scores for step in at["lineage"]["steps"].items() if (scores := step.get("scores")) is not None]
    found = [one for scores in scored if (one := scores.get("comparison")) is not None]
    known = list(map(_measured, found))
    for view in views:
        inside = at.get(view.key) if view.key else None
        found += [one for one in view.compared(inside) if _measured(one) not in known] if inside else []
    return found


def _measured(at: At) -> dict[str, Any]:
    """What a comparison found, whatever its model is called."""
    return {**at.data, "model": at.data["model"]["bytes"]}


def _names(at: At) -> tuple[str, str]:
    return at.data["base"]["model"], at.data["model"]["model"]
