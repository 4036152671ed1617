"""Results as notebooks show them: the blocks that a page and a console have, as HTML."""

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from pydantic import ValidationError

from kanna.measure.results import BenchResult
from kanna.methods import views
from kanna.reporting.blocks import At, Block, Paragraph, Section
from kanna.reporting.comparison import comparison, evaluation
from kanna.reporting.costs import bench
from kanna.reporting.fragment import fragment
from kanna.reporting.verdicts import titles, verdict
from kanna.reporting.views import Result, View
from kanna.reporting.wording import percent, size
from kanna.runs.inspect import InspectResult
from kanna.runs.inspected import section
from kanna.runs.runner import RunResult
from kanna.tasks.records import Evaluation
from kanna.tasks.verdict.comparison import Comparison


def html(result: Any) -> str:
    """A result as HTML for the cell of a notebook."""
    return fragment(_sections(result))


@singledispatch
def _sections(result: Any) -> list[Section]:
    """Of a result of a method, as its view draws it; of what has none its line."""
    data = result.to_dict()
    view = next((view for view in views() if view.kind == data.get("kind")), None)
    if view is None or not _is(view, data):
        return [Section("", [Paragraph([repr(result)])])]
    model = data.get("model", view.kind)
    name = str(model["name"] if isinstance(model, Mapping) else model)
    cards, sections = view.draw([Result(At(name, data))])
    return [*sections, Section("", cards)]


def _is(view: View, data: Mapping[str, Any]) -> bool:
    """Whether a result holds what the view of its kind draws."""
    try:
        view.schema.model_validate(data)
    except ValidationError:
        return False
    return True


@_sections.register
def _(result: Evaluation) -> list[Section]:
    return [evaluation(At(result.model, result.to_dict(records=False)))]


@_sections.register
def _(result: Comparison) -> list[Section]:
    at = At(result.model.model, result.to_dict())
    (title,) = titles([at])
    return [Section("", [verdict(at, title)]), comparison(at, title)]


@_sections.register
def _(result: BenchResult) -> list[Section]:
    return [bench(At(result.models[0].model, result.to_dict()))]


@_sections.register
def _(result: InspectResult) -> list[Section]:
    return [section(result)]


@_sections.register
def _(result: RunResult) -> list[Section]:
    if result.out is None:
        tables = [block for step in result.steps if step.plan is not None for block in step.plan.tables()]
        return [Section("Planned, nothing was written", tables)]
    blocks: list[Block] = [Paragraph([repr(result).strip("<>")])]
    for step in result.steps:
        figures, described = step.figures, step.description
        blocks += () if described is None else described.console
        if "keep_model_bytes" in figures:
            before, after = size(figures["model_bytes_before"]), size(figures["model_bytes_after"])
            kept = percent(figures["keep_model_bytes"])
            blocks.append(Paragraph([f"{step.method}: {before} → {after} of weights ({kept})"]))
        blocks += () if described is None else [Paragraph([line]) for line in described.lines]
    compared = [] if result.comparison is None else _sections(result.comparison)
    return [Section("", blocks), *compared]
