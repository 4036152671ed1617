"""What a report shows of quantised models: `VIEWS` is the door, everything else here lies behind it.

`errors` is what rounding cost, by role and over layers; `beside` several models on one table.
"""

from collections.abc import Sequence

from kanna.methods.quantize.report.beside import beside
from kanna.methods.quantize.report.errors import errors
from kanna.methods.quantize.results import Quantised
from kanna.reporting.blocks import Section, Verdict
from kanna.reporting.views import Result, View


def _draw(results: Sequence[Result]) -> tuple[list[Verdict], list[Section]]:
    each = [Section(f"Whole numbers of {result.at.name}", errors(result.at)) for result in results]
    return [], [*beside(results), *each]


VIEWS: tuple[View, ...] = (View("quantize", Quantised, _draw, step="quantize"),)
