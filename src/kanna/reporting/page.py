"""From results to the blocks of a page."""

from collections.abc import Sequence

from kanna.methods.laser.report import verdicts as laser_verdicts
from kanna.methods.laser.report.analysis import analysis
from kanna.methods.laser.report.composition import composition
from kanna.methods.laser.report.search import search
from kanna.reporting import costs
from kanna.reporting.blocks import At, Page, Section, Verdict
from kanna.reporting.comparison import comparison
from kanna.reporting.evaluation import evaluation
from kanna.reporting.lineage import lineage
from kanna.reporting.overview import overview
from kanna.reporting.sources import Source
from kanna.reporting.verdicts import titles, verdicts

_SEARCH = ("laser-search", "search")


def page(sources: Sequence[Source], title: str) -> Page:
    """The page of all sources: verdicts, overview, then each result with its tables."""
    places = [(source, At(source.name, source.data)) for source in sources]
    compared = comparisons(places)
    benches = [at for source, at in places if source.kind == "bench"]
    models = [at for source, at in places if source.kind == "model"]
    on_edits, about_edits = edits(places)
    sections = [
        *overview(compared, benches),
        *(comparison(at, name) for at, name in zip(compared, titles(compared), strict=True)),
        *about_edits,
        *(evaluation(at) for source, at in places if source.kind == "eval"),
        *(costs.bench(at) for at in benches),
        *(lineage(at) for at in models),
    ]
    data = {source.name: source.data for source in sources}
    return Page(title, verdicts(compared, models, on_edits), sections, data)


def edits(places: Sequence[tuple[Source, At]]) -> tuple[list[Verdict], list[Section]]:
    """Cards and sections of searches, compositions and analyses, in this order."""
    found = within(places, *_SEARCH)
    composed = within(places, "laser-compose", "stages")
    analysed = [at for source, at in places if source.kind == "laser-analysis"]
    partly = {f"{at.name}#/stages": stage for at in within(places, "", "lineage") if (stage := held(at))}
    cards: list[Verdict] = []
    sections: list[Section] = []
    for at, title in zip(found, laser_verdicts.titles(found, "search"), strict=True):
        cards.append(laser_verdicts.of_search(at, title))
        sections.append(search(at, title))
    for at, title in zip(composed, laser_verdicts.titles(composed, "composition"), strict=True):
        cards.append(laser_verdicts.of_composition(at, title, partly.get(at.source)))
        sections.append(composition(at, title))
    for at, title in zip(analysed, laser_verdicts.titles(analysed, "analysis"), strict=True):
        cards.append(laser_verdicts.of_analysis(at, title))
        sections.append(analysis(at, title))
    return cards, sections


def held(lineage: At) -> At | None:
    """The stage that a model holds which `kanna laser restore --stage` wrote."""
    steps = lineage["steps"].items()
    scores = steps[-1].get("scores") if steps else None
    return None if scores is None else scores.get("stage")


def within(places: Sequence[tuple[Source, At]], kind: str, key: str) -> list[At]:
    """Results of a kind, those in model directories among them."""
    found = [
        at if source.kind == kind else at.get(key) for source, at in places if source.kind in (kind, "model")
    ]
    return [at for at in found if at is not None]


def searches(sources: Sequence[Source]) -> list[At]:
    """Those that are files of their own, and those in model directories."""
    return within([(source, At(source.name, source.data)) for source in sources], *_SEARCH)


def comparisons(places: Sequence[tuple[Source, At]]) -> list[At]:
    """Those that `kanna compare` wrote, and those in the lineage of models that it did not look at."""
    found = [at for source, at in places if source.kind == "compare"]
    known = {(at.data["base"]["model"], at.data["model"]["model"]) for at in found}
    for source, at in places:
        if source.kind != "model":
            continue
        for step in at["lineage"]["steps"].items():
            inside = (step.data.get("scores") or {}).get("comparison")
            if inside and (inside["base"]["model"], inside["model"]["model"]) not in known:
                found.append(step["scores"]["comparison"])
    return found
