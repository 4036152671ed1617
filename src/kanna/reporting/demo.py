"""What `kanna demo` found: models of several sizes, asked the same questions; as written, and on a page."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from kanna.reporting import charts
from kanna.reporting.blocks import MEASURED, At, Cell, Chart, Figure, Paragraph, Section, Table, Verdict
from kanna.reporting.verdicts import NOT_JUDGED, smaller
from kanna.reporting.views import Result as Drawn
from kanna.reporting.views import View
from kanna.reporting.wording import percent, size
from kanna.result import Bytes, Result, Several

DENSE, OURS, WHOLE = "dense", "kanna's default", "whole numbers"


class DemoRow(Result):
    """One model of the demo.

    Args:
        method: How it was compressed; "dense" for the shipped model.
        setting: In words: "keep 0.80", "4 bits"; "all" for the shipped model.
        keep: Parameters of the matrices kept, as reached.
        model_bytes: Of all tensors.
        right: Share of the questions answered exactly.
        by_skill: The same for each kind of question.
        perplexity: On held-out stories, each on its own.
    """

    method: str
    setting: str
    keep: float
    model_bytes: Bytes
    right: float
    by_skill: dict[str, float]
    perplexity: float


class DemoResult(Result):
    """What the demo did and where it is.

    Args:
        matrices: Of the model, that can be compressed.
        questions: Asked of each model.
        constant_answer: Share that always giving the commonest answer gets right.
        rows: The shipped model, then the others.
        lost: A sentence for each size of kanna's default, and for whole numbers.
    """

    schema_version: int = 1
    kind: Literal["demo"] = "demo"
    out: str
    matrices: int
    questions: int
    constant_answer: float
    rows: Annotated[Several[DemoRow], Field(min_length=1)]
    lost: Several[str]


def _draw(results: Sequence[Drawn]) -> tuple[list[Verdict], list[Section]]:
    return [_card(one.at) for one in results], [_section(one.at) for one in results]


def _card(at: At) -> Verdict:
    """Of the smallest of kanna's low ranks: how much is gone, and what is left of the answers."""
    rows = at["rows"].items()
    last = [row for row in rows if row.data["method"] == OURS][-1:] or rows[-1:]
    (least,) = last
    headline, weights = (
        smaller(least["model_bytes"], rows[0]["model_bytes"]),
        (_bytes(rows[0]), " → ", _bytes(least), " of weights, the smallest one made"),
    )
    text = (
        "Questions right: ", _right(rows[0]), " before, ", _right(least), " after. "
        "Nobody said what may be lost, so nothing was judged. "
        "Do it with: kanna compare BASE MODEL --task FILE --max-drop 1% --out DIR",
    )  # fmt: skip
    return Verdict(NOT_JUDGED, "The demo's model, made smaller", headline, weights, text)


def _section(at: At) -> Section:
    rows = at["rows"].items()
    columns = ("method", "setting", ">model", ">of it left", ">questions right", ">perplexity")
    cells: list[list[Cell]] = [
        [
            row.data["method"],
            row.data["setting"],
            _bytes(row),
            row["model_bytes"].over(
                rows[0]["model_bytes"], percent(row.data["model_bytes"] / rows[0].data["model_bytes"])
            ),
            _right(row),
            row.cell("perplexity", ".2f"),
        ]
        for row in rows
    ]
    asked = Paragraph([
        at.cell("questions"), " questions that no model was trained on; ",
        "always giving the commonest answer gets ", at.cell("constant_answer", percent), " right.",
    ])  # fmt: skip
    said = [Paragraph([f"{line[:1].upper()}{line[1:]}."]) for line in at.data["lost"]]
    table = Table("The same model at several sizes", columns, cells, MEASURED)
    return Section("What is left at each size", [asked, table, _chart(at), *said])


def _chart(at: At) -> Chart:
    dots = []
    for row in at.data["rows"]:
        kept = f"{row['method']}, {row['setting']}"
        tip = f"{kept}: {size(row['model_bytes'])}, {percent(row['right'])} right"
        short = {OURS: "kanna ", WHOLE: ""}.get(row["method"], "SVD ")
        label = DENSE if row["method"] == DENSE else f"{short}{row['setting'].removeprefix('keep ')}"
        status = {DENSE: "base", OURS: "pass", WHOLE: "undecided"}.get(row["method"], "")
        dots.append(
            charts.Dot(label, row["model_bytes"] / 1e6, row["right"], row["right"], row["right"], status, tip)
        )
    drawn = charts.scatter(dots, "weights on disk (MB)", "questions right", percent=True)
    caption = (
        "Up and to the left is better. Green: kanna's default; grey: plain SVD of the same size; "
        "brown: whole numbers."
    )
    return Chart("Questions right against size", drawn, caption, [dot.tip for dot in dots])


def _bytes(row: At) -> Figure:
    return row["model_bytes"].figure(size(row.data["model_bytes"]))


def _right(row: At) -> Figure:
    return row["right"].figure(percent(row.data["right"]))


VIEW = View("demo", DemoResult, _draw)
