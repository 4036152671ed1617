"""Several runs on the same model and rows: size against loss."""

from collections import defaultdict
from collections.abc import Sequence

from kanna.reporting import charts
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Section, Table
from kanna.reporting.views import Result
from kanna.reporting.wording import percent


def beside(results: Sequence[Result]) -> list[Section]:
    """A section for each model and data of which there are several runs; loss on other rows says nothing."""
    groups: dict[tuple[str, str], list[At]] = defaultdict(list)
    for result in results:
        if (data := _data_of(result)) is not None and _held_out(result.at) is not None:
            groups[result.at.data["model"], data].append(result.at)
    return [
        Section(f"Basel of {model}: runs on the same rows", _blocks(runs))
        for (model, _), runs in groups.items()
        if len(runs) > 1
    ]


def _data_of(result: Result) -> str | None:
    """Hash of what the run learnt from."""
    if result.lineage is None:
        return None
    steps = [step for step in result.lineage.data["steps"] if step["method"] == "basel"]
    return str(steps[-1]["data_hash"]) if steps and steps[-1].get("data_hash") else None


def _held_out(at: At) -> At | None:
    """Loss of the part that ended the run, on rows that were not learnt."""
    part = at.get("factors") or at.get("weights")
    return None if part is None else part.get("held_out")


def _blocks(runs: Sequence[At]) -> list[Block]:
    rows: list[list[Cell]] = []
    dots = []
    for at in runs:
        loss = _held_out(at)
        assert loss is not None
        kept = at.data["keep_selected"]
        rows.append(
            [
                at.name,
                at.data["importance"],
                at["keep_selected"].figure(percent(kept)),
                at.cell("keep_model", percent),
                loss.figure(f"{loss.data:.4f}"),
            ]
        )
        tip = f"{at.name}: {percent(kept)} of the matrices kept, loss {loss.data:.4f}"
        dots.append(charts.Dot(at.name, 100 * kept, loss.data, loss.data, loss.data, "", tip))
    columns = ("run", "importance", ">of the matrices", ">of the model", ">loss held out")
    drawing = charts.scatter(dots, "parameters of the matrices kept, in %", "loss held out")
    caption = "Loss on rows that were not learnt, nats a token. Down and to the left is better."
    chart = Chart("Loss against size", drawing, caption, [dot.tip for dot in dots])
    return [Table("Runs", columns, rows, MEASURED), chart]
