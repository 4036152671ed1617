"""What edits came to on test rows, beside the controls: tables that search and composition share."""

from collections.abc import Mapping, Sequence
from typing import Any

from kanna.reporting.blocks import MEASURED, At, Block, Cell, Figure, Paragraph, Table
from kanna.reporting.wording import change, percent, shown

AS_IT_IS = "as it is"
_CONTROLS = {
    "magnitude": "magnitude pruning, same size",
    "random": "random components, same size",
}


def value(at: At, key: str, metric: str | None = None) -> Cell:
    """The number under a key as the metric is shown; nothing where there is none."""
    if at.data.get(key) is None:
        return ""
    return at[key].figure(shown(key if metric is None else metric, at.data[key]))


def loss(at: At) -> Cell:
    """Nats per row, to as many places as `kanna laser` prints."""
    return "" if at.data.get("log_loss") is None else at["log_loss"].figure(f"{at.data['log_loss']:.4f}")


def perplexity(at: At, key: str = "perplexity") -> Cell:
    """Nothing where it was not measured."""
    return "" if at.data.get(key) is None else at[key].figure(f"{at.data[key]:.2f}")


def plain_text(at: At | None) -> list[Block]:
    """One sentence on the perplexity before and after, where both were measured."""
    pair = [] if at is None else [perplexity(at, key) for key in ("base", "edited")]
    figures = [figure for figure in pair if isinstance(figure, Figure)]
    if len(figures) < 2:
        return []
    return [Paragraph(["Perplexity of plain text: ", figures[0], " → ", figures[1], "."])]


def filled(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> tuple[list[str], list[list[Cell]]]:
    """The table without the columns in which no row has anything."""
    kept = [index for index in range(len(columns)) if any(row[index] != "" for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def together(edits: Sequence[str]) -> str:
    """Edits that are put in at once."""
    return " + ".join(edits)


def tested(at: At, edit: str) -> list[Block]:
    """Tables and one sentence on the test rows.

    Args:
        at: "test" of a search or a composition.
        edit: What the edits are called.
    """
    metric, rows = at.data["metric"], at.data["rows"]
    names = {"base": AS_IT_IS, "edit": edit, **_CONTROLS}
    lines = [_scored(said, at[name], metric, at["base"]) for name, said in names.items()]
    lines += _floor(at)
    columns = ("model", f">{metric}", ">change", ">log loss", ">consistency")
    title = f"On {rows:,} test rows, which chose nothing"
    blocks: list[Block] = [Table(title, *filled(columns, lines), MEASURED), Paragraph(difference(at, metric))]
    by = at.get("by")
    return blocks if by is None else [*blocks, by_key(by, metric, names, "On test rows")]


def _scored(said: str, at: At, metric: str, base: At) -> list[Cell]:
    moved: Cell = ""
    if at.path != base.path:
        moved = at["value"].minus(base["value"], change(metric, at.data["value"] - base.data["value"]))
    return [said, value(at, "value", metric), moved, loss(at), value(at, "consistency")]


def _floor(at: At) -> list[list[Cell]]:
    floors = at["floors"]
    if "constant" not in floors.data:
        return []
    return [["always the commonest answer", value(floors, "constant"), "", "", ""]]


def difference(at: At, metric: str) -> list[str | Figure]:
    """One sentence: the difference, its interval, and what flipped.

    Args:
        at: Has difference, interval, confidence, lost and gained.
    """
    return [
        "Difference ",
        at["difference"].figure(change(metric, at.data["difference"])),
        ", interval ",
        *interval(at, metric),
        ", of which each end holds at ",
        at["confidence"].figure(percent(at.data["confidence"])),
        " confidence",
        *_flipped(at),
    ]


def interval(at: At, metric: str) -> list[str | Figure]:
    """Its two ends."""
    low, high = at["interval"].items()
    return [low.figure(change(metric, low.data)), " to ", high.figure(change(metric, high.data))]


def _flipped(at: At) -> list[str | Figure]:
    lost, gained = at.get("lost"), at.get("gained")
    if lost is None or gained is None:
        return ["."]
    return [
        "; ",
        lost.figure(f"{lost.data:,}"),
        " rows lost, ",
        gained.figure(f"{gained.data:,}"),
        " gained.",
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
    before, after, *rest = (at[name].get(group) for name in (*pair, *others))
    scores = ["" if one is None else value(one, "value", metric) for one in (before, after, *rest)]
    count: Cell = "" if before is None else before["rows"].figure(f"{before.data['rows']:,}")
    moved: Cell = ""
    if before is not None and after is not None:
        moved = after["value"].minus(
            before["value"], change(metric, after.data["value"] - before.data["value"])
        )
    return [group, count, *scores[:2], moved, *scores[2:]]


def _natural(name: str) -> tuple[bool, float, str]:
    """Numbers by size, before other names."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def direction(found: Mapping[str, Any]) -> str:
    """What an interval of a difference, more of which is better, says."""
    low, high = found["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "no clear difference"
