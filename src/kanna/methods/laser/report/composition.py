"""The section of a composition: the steps that were tried, one on top of the other."""

from kanna.methods.laser.report import tested as laser_tests
from kanna.methods.laser.report.tested import AS_IT_IS, loss, value
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Paragraph, Section, Table
from kanna.reporting.wording import filled, moved


def composition(at: At, title: str) -> Section:
    """The stages and the test."""
    blocks: list[Block] = [
        Paragraph(
            [
                "Edits of a search, the last layers first. Each is put on top of those accepted before, and "
                "stays only if the validation score gets better and no limit is broken."
            ]
        ),
        _stages(at),
        *laser_tests.plain_text(at["perplexity"]),
    ]
    test = at.get("test")
    if test is not None:
        blocks += laser_tests.tested(test, laser_tests.together(test.data["edits"]))
    return Section(title, blocks)


def _stages(at: At) -> Table:
    metric = at.data["task"]["metric"]
    columns = (">stage", "edit", "", f">{metric}", ">change", ">log loss", ">consistency")
    rows = [_stage(at["base"], at["base"], metric)]
    rows += [_stage(stage, at["base"], metric) for stage in at["stages"].items()]
    rows_of = at.data["task"]["validation_rows"]
    return Table(f"Stages, on {rows_of:,} validation rows", *filled(columns, rows), MEASURED)


def _stage(at: At, base: At, metric: str) -> list[Cell]:
    scores: list[Cell] = [value(at, "accuracy", metric), "", loss(at), value(at, "consistency")]
    if at.path == base.path:
        return ["0", AS_IT_IS, "", *scores]
    scores[1] = moved(at["accuracy"], base["accuracy"], metric)
    number, status = (at.cell("number"), "accepted") if at.data["accepted"] else ("", "rejected")
    return [number, at.data["edit"], status, *scores]
