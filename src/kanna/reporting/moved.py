"""How far scales moved, as a map over layers and roles: between two sets, or of one against none."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kanna.reporting.blocks import COMPUTED, Chart, Page, Section, Table
from kanna.reporting.places import Spot, role_map
from kanna.reporting.wording import percent

_UNIT = "of what they were, in %"
_CAPTION = "Root of the mean square over a matrix, relative to the scales as they were quantised."


def page(
    base: str, one: str, other: str, moved: Sequence[Mapping[str, Any]], known: Collection[str] = ()
) -> Page:
    """A page with the map, and the numbers in words.

    Args:
        moved: `path`, `mean` and `most` of each matrix.
        known: The roles that the inventory had, where they are told.
    """
    title = f"Scales of {base}: {one} against {other}"
    drawn = chart("By how much scales differ", moved, ">scales differ by", known)
    return Page(title, [], [Section(title, [drawn])], data={"moved": list(moved)})


def chart(title: str, moved: Sequence[Mapping[str, Any]], heading: str, known: Collection[str] = ()) -> Chart:
    """The map alone, beside the matrices as a table under that heading."""
    spots = [
        Spot(
            row["path"], row["mean"], f"{row['path']}: {percent(row['mean'])}, at most {percent(row['most'])}"
        )
        for row in moved
    ]
    rows = [(row["path"], percent(row["mean"]), percent(row["most"])) for row in moved]
    table = Table(title, ("matrix", heading, ">at most"), rows, COMPUTED)
    return role_map(title, spots, _UNIT, _CAPTION, table, known)
