"""What a report shows of merges: models, parameters, what became of values, and where models disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kanna.methods.merge.hi.report import analysis_blocks, hi_blocks
from kanna.methods.merge.hi.results import MergeAnalysis
from kanna.methods.merge.results import RESULT, MergeOutcome
from kanna.methods.merge.tuning import report as tuned
from kanna.reporting.blocks import COMPUTED, At, Block, Cell, Chart, Paragraph, Section, Table, Verdict
from kanna.reporting.comparison import comparison
from kanna.reporting.curves import Curve, curves
from kanna.reporting.views import Result, View
from kanna.reporting.wording import percent, size, told_apart

_COLUMNS = ("layer", ">cosine", ">sign conflicts")
_OUTSIDE = "outside of layers"
_CAPTION = (
    "Differences of the models from the base. A cosine of 1 says that they go the same way, 0 that they have "
    "nothing in common; a sign conflict is an entry that several models changed, not all in one direction."
)


def _draw(results: Sequence[Result]) -> tuple[list[Verdict], list[Section]]:
    names = [f"Merge by {result.at.data['method']}" for result in results]
    titles = told_apart(names, (result.at.source for result in results))
    merges = [Section(title, _blocks(result.at)) for result, title in zip(results, titles, strict=True)]
    return [], [
        section for one, merge in zip(results, merges, strict=True) for section in (*_gains(one.at), merge)
    ]


def _blocks(at: At) -> list[Block]:
    notes = [Paragraph([f"Note: {warning}"]) for warning in at.data["warnings"]]
    told = [*hi_blocks(at.get("hi")), *_disagreement(at)]
    return [_models(at), _groups(at), Paragraph(_became(at)), *notes, *told]


def _models(at: At) -> Table:
    rows: list[list[Cell]] = []
    for one in at["inputs"].items():
        name = one.data["name"]
        role = "base" if name == at.data["base"] else ""
        dtypes = " ".join(one.data["dtypes"])
        rows.append([name, role, dtypes, one.cell("bytes", size), one.data.get("licence") or "not said"])
    return Table("Models", ("model", "role", "dtypes", ">bytes", "licence"), rows, COMPUTED)


def _groups(at: At) -> Table:
    rows: list[list[Cell]] = []
    for group in at["groups"].items():
        said = "; ".join(
            f"{name} {_values(value)}" for name, value in group.data.get("parameters", {}).items()
        )
        rows.append(
            [
                group.data["method"],
                str(len(group.data["tensors"])),
                group.cell("values"),
                said,
                group.data["tensors"][0],
            ]
        )
    return Table("Parameters", ("method", ">tensors", ">values", "<parameters", "such as"), rows)


def _values(value: Any) -> str:
    if isinstance(value, str):
        return value
    return " ".join(f"{one:g}" for one in (value if isinstance(value, list) else [value]))


def _became(at: At) -> list[Any]:
    figures = at["figures"]
    said: list[Any] = [figures.cell("tensors_merged"), " tensors merged, written as ", at.data["dtype"]]
    if (kept := figures.cell("kept_share", percent)) != "":
        said += [", ", kept, " of the differences kept"]
    if (lost := figures.cell("rounding_loss", percent)) != "":
        said += [", rounding took ", lost, " of what merging changed"]
    return [*said, "."]


def _disagreement(at: At) -> list[Block]:
    found = at.get("disagreement")
    if found is None:
        return []
    models = found.data["models"]
    rows = [
        [
            _layer(one.data["layer"]),
            one.cell("cosine", ".3f"),
            one.cell("conflicts", percent),
            *_norms(one, models),
        ]
        for one in found["layers"].items()
    ]
    total = found["all"]
    rows.append(
        ["all", total.cell("cosine", ".3f"), total.cell("conflicts", percent), *_norms(total, models)]
    )
    columns = (*_COLUMNS, *(f">norm of {name}" for name in models))
    return [*_chart(found), Table(_title(found.data), columns, rows, COMPUTED)]


def _norms(at: At, models: Sequence[str]) -> list[Cell]:
    """Of each model's difference, beside the base's weights."""
    ratios = at["norm_ratios"]
    return ["" if one.data is None else one.figure(percent(one.data)) for one in ratios.items()]


def _chart(found: At) -> list[Block]:
    layers = [one for one in found.data["layers"] if one["layer"] is not None]
    lines = []
    for key, label in (("cosine", "cosine"), ("conflicts", "conflicts")):
        places = enumerate(layers)  # of a decoder behind those of its encoder
        points = [(float(place), float(one[key])) for place, one in places if one[key] is not None]
        if len(points) > 1:
            tip = f"{label}: from {points[0][1]:.3f} in the first layer to {points[-1][1]:.3f} in the last"
            lines.append(Curve(label, points, tip))
    if not lines:
        return []
    drawing = curves(lines, "layer", "cosine, and share of sign conflicts")
    return [Chart("Where models disagree", drawing, _CAPTION, [line.tip for line in lines])]


def _title(data: Mapping[str, Any]) -> str:
    sampled = ", from at most 65,536 evenly spaced entries of each tensor" if data["sampled"] else ""
    return f"Differences from the base by layer{sampled}"


def _layer(number: int | str | None) -> str:
    return _OUTSIDE if number is None else str(number)


def disagreement_table(data: Mapping[str, Any]) -> Table:
    """As a plan shows it."""
    at = At("plan", {"disagreement": data})
    table = _disagreement(at)[-1]
    assert isinstance(table, Table)
    return table


def analysed(at: At) -> list[Block]:
    """Everything that an analysis holds."""
    disagree = _disagreement(at) or [Paragraph(["No two models differ from a base that the recipe names."])]
    return [*disagree, *analysis_blocks(at)]


def _draw_analyses(results: Sequence[Result]) -> tuple[list[Verdict], list[Section]]:
    names = [f"Analysis of {result.at.data['method']}" for result in results]
    titles = told_apart(names, (result.at.source for result in results))
    return [], [Section(title, analysed(one.at)) for one, title in zip(results, titles, strict=True)]


def _compared(at: At) -> list[At]:
    """The merge beside its experts."""
    return [one["beside_expert"] for one in _tasks(at)]


def _gains(at: At) -> list[Section]:
    """The merge beside the base: what each expert's tasks gained."""
    pairs = [(one.data["expert"], beside) for one in _tasks(at) if (beside := one.get("beside_base"))]
    return [comparison(beside, f"What the tasks of {name} gained beside the base") for name, beside in pairs]


def _tasks(at: At) -> list[At]:
    return [] if at.get("tasks") is None else at["tasks"].items()


VIEWS: tuple[View, ...] = (
    View("merge", MergeOutcome, _draw, file=RESULT, key="merge", compared=_compared),
    View("merge-analysis", MergeAnalysis, _draw_analyses),
    *tuned.VIEWS,
)
