"""What edits came to on test rows, beside the controls: tables that search and composition share."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from kanna.reporting.blocks import MEASURED, At, Block, Cell, Figure, Paragraph, Table
from kanna.reporting.wording import difference, filled, interval, moved, percent
from kanna.tasks.metrics.shown import shown

AS_IT_IS = "as it is"
_CONTROLS = {
    "magnitude": "magnitude pruning, same size",
    "random": "random components, same size",
}


def value(at: At, key: str, metric: str | None = None) -> str | Figure:
    """The number under a key as the metric is shown; nothing where there is none."""
    return at.cell(key, partial(shown, key if metric is None else metric))


def loss(at: At) -> str | Figure:
    """Nats per row, to as many places as `kanna laser` prints."""
    return at.cell("log_loss", ".4f")


def perplexity(at: At, key: str = "perplexity") -> str | Figure:
    """Nothing where it was not measured."""
    return at.cell(key, ".2f")


def plain_text(at: At | None) -> list[Block]:
    """One sentence on the perplexity before and after, where both were measured."""
    before, after = ("" if at is None else perplexity(at, key) for key in ("base", "edited"))
    if not (before and after):
        return []
    return [Paragraph(["Perplexity of plain text: ", before, " → ", after, "."])]


def tested(at: At) -> list[Block]:
    """Tables and one sentence on the test rows, from "test" of a search or a composition."""
    metric, rows = at.data["metric"], at.data["rows"]
    names = {"base": AS_IT_IS, "edit": " + ".join(at.data["edits"]), **_CONTROLS}
    lines = [_scored(model, at[name], metric, at["base"]) for name, model in names.items()]
    if constant := value(at["floors"], "constant"):
        lines.append(["always the commonest answer", constant, "", "", ""])
    columns = ("model", f">{metric}", ">change", ">log loss", ">consistency")
    title = f"On {rows:,} test rows, which chose nothing"
    blocks: list[Block] = [Table(title, *filled(columns, lines), MEASURED), Paragraph(decided(at, metric))]
    by = at.get("by")
    return blocks if by is None else [*blocks, by_key(by, metric, names, "On test rows")]


def _scored(model: str, at: At, metric: str, base: At) -> list[Cell]:
    gain: Cell = "" if at.path == base.path else moved(at["value"], base["value"], metric)
    return [model, value(at, "value", metric), gain, loss(at), value(at, "consistency")]


def decided(at: At, metric: str) -> list[str | Figure]:
    """One sentence: the difference, its interval, and what flipped.

    Args:
        at: Has difference, interval, confidence, lost and gained.
    """
    lost, gained = at.cell("lost"), at.cell("gained")
    flipped = ["; ", lost, " rows lost, ", gained, " gained."] if lost and gained else ["."]
    return [
        "Difference ",
        difference(at, metric),
        ", interval ",
        *interval(at, metric),
        ", of which each end holds at ",
        at.cell("confidence", percent),
        " confidence",
        *flipped,
    ]


def by_key(at: At, metric: str, names: Mapping[str, str], where: str) -> Table:
    """Scores of rows of one kind at a time, the smallest value of the key first.

    Args:
        at: The key, and for each model what it scored per value of the key.
        names: Models to be shown -> as they are called: the base, the edited one, others.
    """
    base, edited, *others = names
    columns = (at.data["key"], ">rows", f">{names[base]}", f">{names[edited]}", ">change",
               *(f">{names[name]}" for name in others))  # fmt: skip
    rows = [
        _group(at, group, metric, (base, edited), others) for group in sorted(at.data[base], key=_natural)
    ]
    return Table(f"{where}, by {at.data['key']}", columns, rows, MEASURED)


def _group(at: At, group: str, metric: str, pair: tuple[str, str], others: Sequence[str]) -> list[Cell]:
    """A value of the key; models that have no such rows have no score."""
    places = [at[name].get(group) for name in (*pair, *others)]
    scores = ["" if place is None else value(place, "value", metric) for place in places]
    before, after, *_ = places
    count = "" if before is None else before.cell("rows")
    gain = moved(after["value"], before["value"], metric) if before and after else ""
    return [group, count, *scores[:2], gain, *scores[2:]]


def _natural(name: str) -> tuple[bool, float, str]:
    """Numbers by size, before other names."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def direction(decision: Mapping[str, Any]) -> str:
    """What an interval of a difference, more of which is better, says."""
    low, high = decision["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "no clear difference"
