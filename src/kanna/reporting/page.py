"""From results to the blocks of a page."""

from collections.abc import Sequence

from kanna.reporting import costs
from kanna.reporting.blocks import At, Page
from kanna.reporting.comparison import comparison, evaluation
from kanna.reporting.lineage import lineage
from kanna.reporting.overview import overview
from kanna.reporting.sources import Source
from kanna.reporting.verdicts import titles, verdicts
from kanna.reporting.views import Result, View


def page(sources: Sequence[Source], title: str, views: Sequence[View] = ()) -> Page:
    """The page of all sources: verdicts, overview, then each result with its tables."""
    places = [(source, At(source.name, source.data)) for source in sources]
    compared = comparisons(places)
    benches = [at for source, at in places if source.kind == "bench"]
    models = [at for source, at in places if source.kind == "model"]
    drawn = [view.draw(results(sources, view)) for view in views]
    tested = [card for cards, _ in drawn for card in cards]
    # A model whose directory holds how it was found has a card of that.
    unseen = [at for at in models if not any(at.get(view.key) for view in views if view.key)]
    sections = [
        *overview(compared, benches),
        *(comparison(at, name) for at, name in zip(compared, titles(compared), strict=True)),
        *(section for _, group in drawn for section in group),
        *(evaluation(at) for source, at in places if source.kind == "eval"),
        *(costs.bench(at) for at in benches),
        *(lineage(at) for at in models),
    ]
    data = {source.name: source.data for source in sources}
    return Page(title, verdicts(compared, unseen, tested), sections, data)


def results(sources: Sequence[Source], view: View) -> list[Result]:
    """Those that a view draws: files of their own, and those in model directories."""
    drawn = []
    for source in sources:
        at = At(source.name, source.data)
        if source.kind == view.kind:
            drawn.append(Result(at))
        elif source.kind == "model" and view.key and (inside := at.get(view.key)):
            drawn.append(Result(inside, at["lineage"]))
    return drawn


def comparisons(places: Sequence[tuple[Source, At]]) -> list[At]:
    """Those that `kanna compare` wrote, and those in the lineage of models that it did not look at."""
    compared = [at for source, at in places if source.kind == "compare"]
    known = {(at.data["base"]["model"], at.data["model"]["model"]) for at in compared}
    for source, at in places:
        if source.kind != "model":
            continue
        for step in at["lineage"]["steps"].items():
            inside = (step.data.get("scores") or {}).get("comparison")
            if inside and (inside["base"]["model"], inside["model"]["model"]) not in known:
                compared.append(step["scores"]["comparison"])
    return compared
