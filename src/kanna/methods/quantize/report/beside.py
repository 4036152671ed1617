"""Several quantised models on one table."""

from collections.abc import Sequence

from kanna.methods.quantize.report.errors import how
from kanna.reporting.blocks import MEASURED, At, Cell, Paragraph, Section, Table
from kanna.reporting.views import Result
from kanna.reporting.wording import filled, percent, size


def beside(results: Sequence[Result]) -> list[Section]:
    """Nothing of one alone; those of one base stand together."""
    if len(results) < 2:
        return []
    ordered = sorted(results, key=lambda result: _base(result).data["hash"])
    rows = [_row(result) for result in ordered]
    columns = (
        "model",
        "from",
        "how",
        ">bits a weight",
        ">bytes of these matrices",
        ">error of weights",
        ">error of outputs",
    )
    said = "Errors are means over matrices; compare them within one base and one kind of error only."
    table = Table("Quantised models", *filled(columns, rows), MEASURED)
    return [Section("Quantised models side by side", [Paragraph([said]), table])]


def _base(result: Result) -> At:
    assert result.lineage is not None
    return result.lineage["base"]


def _row(result: Result) -> list[Cell]:
    step, scores = result.at, result.at["scores"]
    return [
        step.name,
        _base(result).data["name"],
        how(step),
        scores.cell("bits_a_weight", ".2f"),
        scores.cell("bytes_selected_after", size),
        _mean(scores, "weight_error"),
        _mean(scores, "output_error"),
    ]


def _mean(scores: At, key: str) -> str:
    found = [value for value in (scores.data.get(key) or {}).values() if value is not None]
    return percent(sum(found) / len(found)) if found else ""
