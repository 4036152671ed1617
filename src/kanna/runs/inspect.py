"""What a model is made of, from its headers alone; its spectra where they are asked for, and a picture."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.linalg.spectra import effective_rank, energy_rank, signal_rank, singular_values, stable_rank
from kanna.models.head import with_factored_head
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.models.selection import match
from kanna.progress import Progress
from kanna.result import Result, Several, Shown
from kanna.runs.cache_limit import touch
from kanna.runs.picture import check_picture
from kanna.runs.places import usable_cache, warn_of_cache
from kanna.runs.source import Source
from kanna.runs.workspace import Workspace

_FORMAT = 1


class Spectrum(Result):
    """What the singular values of a matrix say.

    Args:
        effective_rank: exp of their entropy.
        stable_rank: Squared Frobenius norm over squared spectral norm.
        rank_90: Smallest rank that holds 90 % of the energy (sum of squares).
        rank_99: The same for 99 %.
        signal_rank: Values above the Gavish-Donoho threshold, the noise estimated from their median.
        values: All of them, descending.
    """

    effective_rank: float
    stable_rank: float
    rank_90: int
    rank_99: int
    signal_rank: int
    values: Several[float] = Field(alias="singular_values")


@dataclass(frozen=True)
class Entry:
    """A matrix as it lies in the files.

    Args:
        matrix: Where it belongs.
        form: How it is stored: `dense`, or the key of a form of kanna.
        rank: Of that form; None where it has none.
        dtype: Of the stored weight, as safetensors calls it.
        bytes: Of the matrix as stored; its bias not counted where it is dense.
        dense_bytes: Of the same matrix if it were dense, in the same dtype.
        stored: Numbers that are stored for it: indices counted, its bias not.
        spectrum: Where it was asked for.
    """

    matrix: Matrix
    form: str
    dtype: str
    bytes: int
    dense_bytes: int
    stored: int
    rank: int | None = None
    spectrum: Spectrum | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.matrix.name,
            "role": self.matrix.role,
            "layer": self.matrix.layer,
            "shape": list(self.matrix.shape),
            "parameters": self.matrix.parameters,
            "stored_parameters": self.stored,
            "form": self.form,
            "rank": self.rank,
            "dtype": self.dtype,
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "break_even_rank": self.matrix.break_even_rank,
            "refused": self.matrix.refused,
            **({} if self.spectrum is None else {"spectrum": self.spectrum.to_dict()}),
        }


@dataclass(frozen=True, repr=False)
class InspectResult(Shown):
    """What was found.

    Args:
        model: Its name.
        inventory: All matrices, and what is skipped.
        entries: Of the selected matrices, refused ones among them.
        bytes: Of all tensors in the files.
        dense_bytes: Of the same model if no matrix were in another form than dense.
        stored: Numbers that are stored for all parameters, shared ones counted once; `inventory` counts those
            of the dense model.
    """

    model: str
    inventory: Inventory
    entries: tuple[Entry, ...]
    bytes: int
    dense_bytes: int
    stored: int

    def __repr__(self) -> str:
        return (
            f"<InspectResult of {self.model}: {len(self.entries)} matrices, {self.stored:,} numbers stored>"
        )

    @property
    def selected_bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries if not entry.matrix.refused)

    def to_dict(self) -> dict[str, Any]:
        inventory = self.inventory
        return {
            "schema_version": 1,
            "model": self.model,
            "architecture": inventory.architecture,
            "blocks": len(inventory.blocks),
            "parameters": inventory.parameters,
            "stored_parameters": self.stored,
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "tied_embeddings": inventory.tied_embeddings,
            "matrices": [entry.to_dict() for entry in self.entries],
            "skipped": [
                {"name": module.name, "reason": module.reason, "parameters": module.parameters}
                for module in inventory.skipped
            ],
        }


def inspect(
    model: str | Path,
    *,
    select: str | None = None,
    spectra: bool = False,
    cache: Path | None = None,
    progress: Listener = False,
) -> InspectResult:
    """List the matrices of a model with sizes and break-even ranks; without spectra no weight is read.

    Args:
        model: Directory, or hub id in the local cache.
        select: Only these matrices (see `kanna.models.selection`).
        spectra: Also compute the singular values of every selected matrix.
        cache: Where spectra are kept, by content; kanna's cache directory by default.
        progress: True shows bars in a notebook, lines elsewhere; or a function of (stage, done, total).

    Returns:
        The matrices (`entries`), what is left alone (`inventory`), and bytes and numbers stored.

    Raises:
        InputError: A damaged or unknown model, a selection that matches nothing, NaN or infinite weights.
    """
    progress = heard(progress)
    source = Source.open(model)
    expression = select or "all"
    inventory = with_factored_head(source.inventory, source.skeleton, expression, source.forms)
    chosen = match(inventory.matrices, expression)
    source.check_shapes()
    entries = [_entry(source, matrix) for matrix in chosen]
    if spectra:
        place = usable_cache("spectra", cache)
        store = None if place is None else Workspace(place)
        entries = list(_with_spectra(source, entries, store, progress))
    stored, dense_bytes = inventory.parameters, source.checkpoint.bytes
    for layer in source.declared.values():
        m, n, dtype = layer.geometry.m, layer.geometry.n, source.dtype(layer.path)
        stored += layer.form.parameters(m, n) - m * n
        dense_bytes += m * n * dtype.itemsize - layer.form.bytes(m, n, dtype)
    return InspectResult(source.name, inventory, tuple(entries), source.checkpoint.bytes, dense_bytes, stored)


def _entry(source: Source, matrix: Matrix) -> Entry:
    checkpoint, stored = source.checkpoint, source.file_name(matrix.tensor)
    if stored is None and matrix.refused:
        # Files may hold a stacked parameter in pieces of other names: the first matrix's dtype is taken.
        stored = next(name for name in checkpoint.tensors if len(checkpoint.shape(name)) > 1)
    name = stored or source.tensor_of(matrix)
    dtype, held = checkpoint.tensors[name].dtype, source.declared.get(matrix.module)
    dense = matrix.parameters * checkpoint.dtype(name).itemsize
    if held is None:
        return Entry(matrix, "dense", dtype, dense, dense, matrix.parameters)
    whole = held.form.bytes(held.geometry.m, held.geometry.n, checkpoint.dtype(name))
    # A fused module's bytes are shared out by rows: its parts have no tensors of their own in every form.
    share = whole * matrix.out_features // held.geometry.m
    numbers = source.parameters(matrix)
    return Entry(matrix, held.form.key, dtype, share, dense, numbers, getattr(held.form, "rank", None))


def _with_spectra(
    source: Source, entries: Sequence[Entry], store: Workspace | None, progress: Progress
) -> Iterator[Entry]:
    """The same entries with spectra, but for those of refused matrices."""
    for done, entry in enumerate(entries):
        progress("spectra", done, len(entries))
        if entry.matrix.refused:
            yield entry
        else:
            yield replace(entry, spectrum=_spectrum(source.weight(entry.matrix), store))
    progress("spectra", len(entries), len(entries))


def _spectrum(weight: Tensor, store: Workspace | None) -> Spectrum:
    values = singular_values(weight) if store is None else _stored(weight, store)
    rows, columns = weight.shape
    return Spectrum(
        singular_values=tuple(values.tolist()),
        effective_rank=effective_rank(values),
        stable_rank=stable_rank(values),
        rank_90=energy_rank(values, 0.90),
        rank_99=energy_rank(values, 0.99),
        signal_rank=signal_rank(values, rows, columns),
    )


def _stored(weight: Tensor, store: Workspace) -> Tensor:
    """Singular values, computed where they are not there."""
    name = f"{_digest(weight)}.safetensors"
    if store.has(name):
        touch(store.directory / name)
        return store.load(name)["values"]
    values = singular_values(weight)
    try:
        store.save(name, {"values": values})
    except (OSError, SafetensorError) as error:
        warn_of_cache(store.directory.parent, error)
    return values


def _digest(weight: Tensor) -> str:
    """Of the content: models that share a matrix share its spectrum, and no path or name matters."""
    facts = f"{_FORMAT} {weight.dtype} {tuple(weight.shape)}".encode()
    data = weight.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(facts + data).hexdigest()[:40]


_COLUMNS = 4
# Below it double precision Gram matrices show rounding, not the model.
_LOWEST = 1e-6
_EVEN_COLOUR, _EVEN_STYLE = "#b3261e", "--"


def plot_spectra(result: InspectResult, path: Path) -> Path:
    """One small picture a role, one line a layer: singular values over the largest, against rank over full.

    A dashed line marks the break-even rank, above which two factors take more than the matrix.
    Drawn without a display.

    Raises:
        InputError: `result` has no spectra, or `path` is no place for a picture.
    """
    check_picture(path, force=True)
    by_role: dict[str, list[Entry]] = defaultdict(list)
    for entry in result.entries:
        if entry.spectrum is not None:
            by_role[entry.matrix.role].append(entry)
    if not by_role:
        raise InputError("there are no spectra to draw", "inspect with spectra")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(_COLUMNS, len(by_role))
    rows = -(-len(by_role) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.0, 2.8 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    count = max(1, len(result.inventory.blocks))
    # A colour for each layer: there is nothing between two of them.
    colours = ScalarMappable(BoundaryNorm([layer - 0.5 for layer in range(count + 1)], 256), "viridis")
    for axis, (role, entries) in zip(axes, by_role.items(), strict=False):
        _draw(axis, role, entries, colours)
    for axis in axes[len(by_role) :]:
        axis.set_visible(False)
    figure.suptitle(f"Spectra of {result.model}\n(dashed: break-even rank)", fontsize=11)
    figure.supxlabel("rank / full rank")
    figure.supylabel("singular value / largest")
    ticks = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]).tick_values(0, count - 1)
    shown = [int(tick) for tick in ticks if 0 <= tick <= count - 1 and tick == int(tick)]
    figure.colorbar(colours, ax=list(axes), label="layer", shrink=0.8, ticks=shown).minorticks_off()
    figure.savefig(path, dpi=150)
    return path


def _draw(axis: Any, role: str, entries: list[Entry], colours: Any) -> None:
    for entry in entries:
        values = entry.spectrum.values if entry.spectrum is not None else ()
        top = values[0] if values and values[0] > 0 else 1.0
        heights = [max(value / top, _LOWEST) for value in values]
        places = [(index + 1) / len(values) for index in range(len(values))]
        axis.plot(places, heights, color=colours.to_rgba(entry.matrix.layer), linewidth=1.0)
    matrix = entries[0].matrix
    rows, columns = matrix.shape
    even = matrix.break_even_rank
    axis.axvline(even / min(rows, columns), color=_EVEN_COLOUR, linestyle=_EVEN_STYLE, linewidth=1.2)
    axis.set_title(f"{role}  {rows} x {columns}, break-even {even}", fontsize=10)
    axis.set_yscale("log")
    axis.grid(True, which="major", alpha=0.3)
