"""What a model is made of, from its headers alone; its spectra where they are asked for."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from kanna.checkpoint.declared import Declared, file_prefix, forms_of, resolve
from kanna.checkpoint.fits import check_shapes
from kanna.checkpoint.reader import Checkpoint, check_finite
from kanna.errors import InputError
from kanna.linalg.spectra import effective_rank, energy_rank, signal_rank, singular_values, stable_rank
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix
from kanna.models.names import tensor_name
from kanna.models.selection import match
from kanna.models.skeleton import skeleton
from kanna.models.views import read
from kanna.runs.places import cache_directory
from kanna.runs.workspace import Workspace

Progress = Callable[[str, int, int], None]
_FORMAT = 1


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of a matrix say.

    Args:
        values: All of them, descending.
        effective_rank: exp of their entropy.
        stable_rank: Squared Frobenius norm over squared spectral norm.
        rank_90: Smallest rank that holds 90 % of the energy (sum of squares).
        rank_99: The same for 99 %.
        signal_rank: Values above the Gavish-Donoho threshold, the noise estimated from their median.
    """

    values: tuple[float, ...]
    effective_rank: float
    stable_rank: float
    rank_90: int
    rank_99: int
    signal_rank: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
            "rank_90": self.rank_90,
            "rank_99": self.rank_99,
            "signal_rank": self.signal_rank,
            "singular_values": list(self.values),
        }


@dataclass(frozen=True)
class Entry:
    """A matrix as it lies in the files.

    Args:
        matrix: Where it belongs.
        form: How it is stored: `dense`, or the key of a form of kanna.
        rank: Of that form; None where it has none.
        dtype: Of the stored weight, as safetensors calls it.
        bytes: Of the matrix as stored; its bias not counted where it is dense.
        spectrum: Where it was asked for.
    """

    matrix: Matrix
    form: str
    dtype: str
    bytes: int
    rank: int | None = None
    spectrum: Spectrum | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.matrix.name,
            "role": self.matrix.role,
            "layer": self.matrix.layer,
            "shape": list(self.matrix.shape),
            "parameters": self.matrix.parameters,
            "form": self.form,
            "rank": self.rank,
            "dtype": self.dtype,
            "bytes": self.bytes,
            "break_even_rank": self.matrix.break_even_rank,
            "refused": self.matrix.refused,
            **({} if self.spectrum is None else {"spectrum": self.spectrum.to_dict()}),
        }


@dataclass(frozen=True)
class InspectResult:
    """What was found.

    Args:
        model: Its name.
        inventory: All matrices, and what is skipped.
        entries: Of the selected matrices, refused ones among them.
        bytes: Of all tensors in the files.
    """

    model: str
    inventory: Inventory
    entries: tuple[Entry, ...]
    bytes: int

    @property
    def selected_bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries if not entry.matrix.refused)

    def to_dict(self) -> dict[str, Any]:
        found = self.inventory
        return {
            "schema_version": 1,
            "model": self.model,
            "architecture": found.architecture,
            "blocks": len(found.blocks),
            "parameters": found.parameters,
            "bytes": self.bytes,
            "tied_embeddings": found.tied_embeddings,
            "matrices": [entry.to_dict() for entry in self.entries],
            "skipped": [
                {"name": one.name, "reason": one.reason, "parameters": one.parameters}
                for one in found.skipped
            ],
        }


def inspect(
    model: str | Path,
    *,
    select: str | None = None,
    spectra: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> InspectResult:
    """List the matrices of a model with sizes and break-even ranks; without spectra no weight is read.

    Args:
        model: Directory, or hub id in the local cache.
        select: Only these matrices (see `kanna.models.selection`).
        spectra: Also compute the singular values of every selected matrix.
        cache: Where spectra are kept, by content; kanna's cache directory by default.
        progress: Called with (stage, done, total).

    Raises:
        InputError: A damaged or unknown model, a selection that matches nothing, NaN or infinite weights.
    """
    checkpoint = Checkpoint.open(model)
    meta = skeleton(checkpoint.directory)
    found = inventory(meta)
    declared = {one.path: one for one in resolve(forms_of(checkpoint.config), meta, found.architecture)}
    chosen = match(found.matrices, select or "all")
    in_other_forms = {f"{path}.{leaf}" for path in declared for leaf in ("weight", "bias")}
    check_shapes(checkpoint, meta, in_other_forms | {matrix.tensor for matrix in found.refused})
    entries = [_entry(checkpoint, found, declared, matrix) for matrix in chosen]
    if spectra:
        store = Workspace((cache or cache_directory()) / "spectra")
        entries = list(_with_spectra(checkpoint, found, declared, entries, store, progress))
    return InspectResult(checkpoint.name, found, tuple(entries), checkpoint.bytes)


def _entry(
    checkpoint: Checkpoint,
    found: Inventory,
    declared: Mapping[str, Declared],
    matrix: Matrix,
) -> Entry:
    if matrix.refused:
        return _refused(checkpoint, found, matrix)
    held = declared.get(matrix.module)
    name = _stored_name(checkpoint, found, declared, matrix)
    stored = checkpoint.tensors[name]
    if held is None:
        count = matrix.parameters * checkpoint.dtype(name).itemsize
        return Entry(matrix, "dense", stored.dtype, count)
    whole = held.form.bytes(held.geometry.m, held.geometry.n, checkpoint.dtype(name))
    # A fused module's bytes are shared out by rows: its parts have no tensors of their own in every form.
    share = whole * matrix.out_features // held.geometry.m
    rank = getattr(held.form, "rank", None)
    return Entry(matrix, held.form.key, stored.dtype, share, rank)


def _refused(checkpoint: Checkpoint, found: Inventory, matrix: Matrix) -> Entry:
    """Files may hold a stacked parameter in pieces of other names: then the first matrix's dtype is taken."""
    name = tensor_name(matrix.tensor, checkpoint.tensors, found.base_model_prefix)
    name = name or next(name for name in checkpoint.tensors if len(checkpoint.shape(name)) > 1)
    size = matrix.parameters * checkpoint.dtype(name).itemsize
    return Entry(matrix, "dense", checkpoint.tensors[name].dtype, size)


def _stored_name(
    checkpoint: Checkpoint, found: Inventory, declared: Mapping[str, Declared], matrix: Matrix
) -> str:
    """The tensor that holds a matrix; for a form of kanna its sentinel, after all its tensors were found."""
    held = declared.get(matrix.module)
    if held is not None:
        return f"{file_prefix(held, checkpoint.tensors, found.base_model_prefix)}.weight"
    name = tensor_name(matrix.tensor, checkpoint.tensors, found.base_model_prefix)
    if name is None:
        raise InputError(
            f"{checkpoint.directory} lacks the tensor {matrix.tensor}, which {found.architecture} needs",
            "fetch the model again; or leave the matrix out with --select",
        )
    return name


def _with_spectra(
    checkpoint: Checkpoint,
    found: Inventory,
    declared: Mapping[str, Declared],
    entries: Sequence[Entry],
    store: Workspace,
    progress: Progress,
) -> Iterator[Entry]:
    """The same entries with spectra; the matrices of one parameter are read together."""
    done = 0
    for _, together in groupby(entries, key=lambda entry: entry.matrix.tensor):
        group = list(together)
        progress("spectra", done, len(entries))
        done += len(group)
        if group[0].matrix.refused:
            yield from group
            continue
        parameter = _parameter(checkpoint, found, declared, group[0].matrix)
        for entry in group:
            weight = check_finite(read(parameter, entry.matrix.view), entry.matrix.name)
            yield replace(entry, spectrum=_spectrum(weight, store))
    progress("spectra", len(entries), len(entries))


def _parameter(
    checkpoint: Checkpoint, found: Inventory, declared: Mapping[str, Declared], matrix: Matrix
) -> Tensor:
    """The parameter as the dense model has it; forms are multiplied out."""
    held = declared.get(matrix.module)
    if held is None:
        return checkpoint.tensor(_stored_name(checkpoint, found, declared, matrix))
    prefix = file_prefix(held, checkpoint.tensors, found.base_model_prefix)
    dense = held.form.merge({suffix: checkpoint.tensor(f"{prefix}.{suffix}") for suffix in held.tensors})
    return dense.T if held.geometry.transposed else dense


def _spectrum(weight: Tensor, store: Workspace) -> Spectrum:
    name = f"{_digest(weight)}.safetensors"
    if not store.has(name):
        store.save(name, {"values": singular_values(weight)})
    values = store.load(name)["values"]
    rows, columns = weight.shape
    return Spectrum(
        values=tuple(values.tolist()),
        effective_rank=effective_rank(values),
        stable_rank=stable_rank(values),
        rank_90=energy_rank(values, 0.90),
        rank_99=energy_rank(values, 0.99),
        signal_rank=signal_rank(values, rows, columns),
    )


def _digest(weight: Tensor) -> str:
    """Of the content: models that share a matrix share its spectrum, and no path or name matters."""
    import torch

    facts = f"{_FORMAT} {weight.dtype} {tuple(weight.shape)}".encode()
    data = weight.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(facts + data).hexdigest()[:40]
