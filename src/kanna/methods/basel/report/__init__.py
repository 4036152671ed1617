"""What a report shows of Basel: `VIEWS` is the door, everything else here lies behind it.

`shares` is what is left of the matrices, `course` how it went there, `weights` what was learnt of the bases,
`beside` several runs on the same rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kanna.methods.basel.report.beside import beside
from kanna.methods.basel.report.course import course
from kanna.methods.basel.report.shares import shares
from kanna.methods.basel.report.weights import weights
from kanna.methods.basel.results import RESULT, Basel
from kanna.reporting.blocks import At, Paragraph, Section, Verdict
from kanna.reporting.views import Result, View
from kanna.reporting.wording import told_apart


def _draw(results: Sequence[Result]) -> tuple[list[Verdict], list[Section]]:
    names = [f"Basel of {result.at.data['model']}" for result in results]
    titles = told_apart(names, (result.at.source for result in results))
    each = [_section(result.at, title) for result, title in zip(results, titles, strict=True)]
    return [], [*beside(results), *each]


def _section(at: At, title: str) -> Section:
    notes = [Paragraph([note]) for note in at.data.get("notes", [])]
    return Section(title, [*shares(at), *notes, *course(at), *weights(at)])


def _lean(data: Mapping[str, Any]) -> dict[str, Any]:
    """Without words of the rows."""
    kept = dict(data)
    for side in ("gained", "lost"):
        kept[side] = [{**basis, "tokens": []} for basis in data.get(side, [])]
    return kept


VIEWS: tuple[View, ...] = (View("basel", Basel, _draw, file=RESULT, key="basel", lean=_lean),)
