"""What a report shows of rank reductions: `VIEWS` is the door, everything else here lies behind it.

Read `search` (one edit or several, and the CSV) and `analysis` for the sections, `verdicts` for what is said
first, `tested` for the tables that they share.
"""

from collections.abc import Callable, Sequence

from kanna.methods.laser.report import analysis, search, verdicts
from kanna.methods.laser.results import RESULT, STAGES, Analysis, Composition, Search
from kanna.reporting.blocks import At, Section, Verdict
from kanna.reporting.views import Result, View

Drawn = tuple[list[Verdict], list[Section]]


def _draw(
    what: str, card: Callable[[Result, str], Verdict], section: Callable[[At, str], Section]
) -> Callable[[Sequence[Result]], Drawn]:
    """A card and a section for each result."""

    def draw(results: Sequence[Result]) -> Drawn:
        titled = list(zip(results, verdicts.titles([result.at for result in results], what), strict=True))
        cards = [card(result, title) for result, title in titled]
        return cards, [section(result.at, title) for result, title in titled]

    return draw


VIEWS: tuple[View, ...] = (
    View(
        "laser-search",
        Search,
        _draw("search", verdicts.of_search, search.search),
        file=RESULT,
        key="search",
        tables=search.trials,
    ),
    View(
        "laser-compose",
        Composition,
        _draw("composition", verdicts.of_composition, search.composition),
        file=STAGES,
        key="stages",
    ),
    View(
        "laser-analysis",
        Analysis,
        _draw("analysis", verdicts.of_analysis, analysis.analysis),
        lean=analysis.wordless,
    ),
)
