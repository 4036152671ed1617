"""Several runs on the same model and held-out rows: size against loss."""

from collections import defaultdict
from collections.abc import Sequence

from kanna.reporting import charts
from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Section, Table
from kanna.reporting.views import Result
from kanna.reporting.wording import percent


def beside(results: Sequence[Result]) -> list[Section]:
    """A section for each model and rows held out of which there are several runs."""
    groups: dict[tuple[str, str], list[At]] = defaultdict(list)
    for at in (result.at for result in results):
        if at.data.get("held_out_hash") and _held_out(at) is not None:
            groups[at.data["model"], at.data["held_out_hash"]].append(at)
    return [
        Section(f"Basel of {model}: runs on the same rows", _blocks(runs))
        for (model, _), runs in groups.items()
        if len(runs) > 1
    ]


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
                at.data["importance"] if at.data["weights"] is not None else "factors that were there",
                at["keep_selected"].figure(percent(kept)),
                at.cell("keep_model", percent),
                loss.figure(f"{loss.data:.4f}"),
            ]
        )
        tip = f"{at.name}: {percent(kept)} of the matrices kept, loss {loss.data:.4f}"
        dots.append(charts.Dot(at.name, 100 * kept, loss.data, loss.data, loss.data, "", tip))
    columns = ("run", "bases chosen by", ">of the matrices", ">of the model", ">loss held out")
    drawing = charts.scatter(dots, "parameters of the matrices kept, in %", "loss held out")
    caption = "Loss on rows that were not learnt, nats a token. Down and to the left is better."
    chart = Chart("Loss against size", drawing, caption, [dot.tip for dot in dots])
    return [Table("Runs", columns, rows, MEASURED), chart]
