"""Pictures of what `inspect` found."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from kanna.errors import InputError
from kanna.runs.inspect import Entry, InspectResult

_COLUMNS = 4
_FORMATS = (".png", ".svg", ".pdf")
# Below it double precision Gram matrices show rounding, not the model.
_LOWEST = 1e-6


def check_picture(path: Path) -> None:
    """Raise InputError for a file that no picture can be written to."""
    if path.suffix not in _FORMATS:
        raise InputError(f"{path.name} is no picture file", f"choose one that ends in {', '.join(_FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.absolute().parent} is no directory", "make it first")


def plot_spectra(result: InspectResult, path: Path) -> Path:
    """One small picture a role, one line a layer: singular values over the largest, against rank over full.

    Drawn without a display.

    Raises:
        InputError: `result` has no spectra, or `path` is no place for a picture.
    """
    check_picture(path)
    by_role: dict[str, list[Entry]] = defaultdict(list)
    for entry in result.entries:
        if entry.spectrum is not None:
            by_role[entry.matrix.role].append(entry)
    if not by_role:
        raise InputError("there are no spectra to draw", "inspect with spectra")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(by_role))
    rows = -(-len(by_role) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.0, 2.8 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    colours = ScalarMappable(Normalize(0, max(1, len(result.inventory.blocks) - 1)), "viridis")  # by layer
    for axis, (role, entries) in zip(axes, by_role.items(), strict=False):
        _draw(axis, role, entries, colours)
    for axis in axes[len(by_role) :]:
        axis.set_visible(False)
    figure.suptitle(f"Spectra of {result.model}")
    figure.supxlabel("rank / full rank")
    figure.supylabel("singular value / largest")
    figure.colorbar(colours, ax=list(axes), label="layer", shrink=0.8)
    figure.savefig(path, dpi=150)
    return path


def _draw(axis: Any, role: str, entries: list[Entry], colours: Any) -> None:
    for entry in entries:
        values = entry.spectrum.values if entry.spectrum is not None else ()
        top = values[0] if values and values[0] > 0 else 1.0
        heights = [max(value / top, _LOWEST) for value in values]
        places = [(index + 1) / len(values) for index in range(len(values))]
        axis.plot(places, heights, color=colours.to_rgba(entry.matrix.layer), linewidth=1.0)
    rows, columns = entries[0].matrix.shape
    axis.set_title(f"{role}  {rows} x {columns}", fontsize=10)
    axis.set_yscale("log")
    axis.grid(True, which="major", alpha=0.3)
