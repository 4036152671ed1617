"""The section of one model's scores on its own."""

from functools import partial

from kanna.reporting.blocks import MEASURED, At, Block, Cell, Paragraph, Section, Table
from kanna.reporting.comparison import floors, named
from kanna.reporting.wording import shown


def evaluation(at: At) -> Section:
    """The headline metric of each task, then all other metrics, and what the reader must know."""
    tasks = at["tasks"].items()
    columns = ("task", ">rows", "metric", ">value", ">constant answer", ">answer in prompt")
    blocks: list[Block] = [Table("Scores", columns, [_score(task) for task in tasks], MEASURED)]
    rest = [row for task in tasks for row in _rest(task)]
    if rest:
        blocks.append(Table("Everything else that was scored", ("task", "metric", ">value"), rest, MEASURED))
    for task in tasks:
        blocks += [Paragraph([f"Note: {task.data['task']}: {note}"]) for note in task.data["notes"]]
    return Section(f"{at.data['model']} on its own", blocks)


def _score(at: At) -> list[Cell]:
    value = at.cell("value", partial(shown, at.data["metric"]))
    return [at.data["task"], at.cell("rows"), named(at.data), value, *floors(at)]


def _rest(at: At) -> list[list[Cell]]:
    metrics = at["metrics"]
    return [
        [at.data["task"], name, metrics.cell(name, partial(shown, name))]
        for name in metrics.data
        if name != at.data["metric"]
    ]
