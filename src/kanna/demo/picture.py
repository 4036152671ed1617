"""The demo's picture: size against skill."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kanna.demo.run import DemoRow

_COLOURS = {"kanna's default": "#0b6e4f", "plain SVD": "#b5541c"}


def draw(rows: "Sequence[DemoRow]", constant: float, path: Path) -> None:
    """Share of right answers over the model's size, a line for each method; written as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dense = rows[0]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method, colour in _COLOURS.items():
        line = [dense, *(row for row in rows if row.method == method)]
        x = [row.model_bytes / 1e6 for row in line]
        axes.plot(x, [100 * row.right for row in line], marker="o", color=colour, label=method, lw=2)
    axes.axhline(100 * constant, color="#777", ls=":", lw=1.5, label="always the commonest answer")
    axes.annotate("dense", (dense.model_bytes / 1e6, 100 * dense.right), (0, 8), textcoords="offset points",
                  ha="center", fontsize=9)  # fmt: skip
    axes.set(xlabel="size of the whole model (MB)", ylabel="questions answered exactly (%)", ylim=(-2, 108))
    axes.set_title("What is left when layers come off", loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150, metadata={"Software": None})
