"""A LoRA adapter out of a fine-tuned model: what matrices differ by from the base, in few singular values.

The difference D of a layer's weight is U S V^T, of which the largest singular values stay: B = U sqrt(S),
A = sqrt(S) V^T, the best factors of their rank (Eckart and Young 1936).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kanna.checkpoint import lineage
from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.reader import Checkpoint, check_finite
from kanna.checkpoint.tensor_file import save_whole
from kanna.checkpoint.writer import output_directory
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.linalg.decomposition import Decomposition, decompose
from kanna.linalg.spectra import energy_rank
from kanna.methods.merge.adapter_result import WrittenAdapter
from kanna.methods.merge.adapter_written import Contents, Layer, write_adapter
from kanna.methods.merge.inputs import model_opened, same_architecture
from kanna.models.names import FileNames
from kanna.models.skeleton import skeleton
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.record import Stages, run_record
from kanna.runs.unfinished import about_to_name, clear, replaces, unfinished_work

_STAGE, _PIECES = "extract", "layers"
# Singular values below this part of the largest are rounding of float32 weights.
_ROUNDING = 1e-7
_OTHER = "it cannot be a LoRA adapter; merge the fine-tuned model as it is"


def extract_lora(
    fine_tuned: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Listener = False,
) -> WrittenAdapter:
    """Write what a model differs by from its base as an adapter that PEFT loads.

    Layers (linear, Conv1D, embeddings) become factors; norms that differ are saved whole, and biases of
    changed layers are saved. Layers that do not differ are left out. Factors are float32.

    Args:
        rank: Of all layers, at most; one of `rank` and `energy` must be given.
        energy: Share of each squared difference that stays, in (0, 1]; each layer has its own rank.
        force: Replace `out`, if it is kanna's.
        resume: Continue an interrupted extraction.
        progress: Called with (stage, done, total).

    Returns:
        What was written: rank, bytes, and the error of each layer.

    Raises:
        InputError: Models that do not fit together, do not differ, or differ in what no adapter can hold.
    """
    progress = heard(progress)
    started = time.perf_counter()
    size = _Size(rank, energy)
    tuned, origin = model_opened(str(fine_tuned)), model_opened(str(base))
    same_architecture(origin, tuned)
    places = _places(tuned, origin)
    place = final_name(out)
    refuse_input(place, tuned.directory, origin.directory)
    replace = replaces(place, force, resume)
    refuse_existing(place, replace)
    stages = Stages(progress)
    state = [_state(tuned), _state(origin)]
    key = lineage.digest_of({"models": state, "rank": rank, "energy": energy, "v": lineage.versions()})
    with unfinished_work(place, key, resume, force) as work:
        contents, lost = _extracted(places, tuned, origin, size, work, stages)
        needed = sum(value.nbytes for value in contents.tensors().values())
        with output_directory(place, force=replace, needed_bytes=needed) as partial:
            write_adapter(partial, contents, origin.name)
            _write_lineage(partial, tuned, origin, {"rank": rank, "energy": energy}, lost)
            about_to_name(work, partial)
        clear(work)
    run = run_record(started, stages.seconds, "cpu")
    lineage.write_run_record(place, run)
    ranks = {layer.module: layer.rank for layer in contents.layers}
    return WrittenAdapter(place, ranks, lost, tuple(contents.saved), needed, run=run)


@dataclass(frozen=True)
class _Size:
    """How many singular values stay: at most so many, or as many as hold a share of the squared difference.

    Raises:
        InputError: Not one of both, or none that can be.
    """

    rank: int | None
    energy: float | None

    def __post_init__(self) -> None:
        rank, energy = self.rank, self.energy
        if (rank is None) == (energy is None):
            raise InputError("give one of rank and energy", "--rank 64, or --energy 0.95")
        if rank is not None and rank < 1:
            raise InputError(f"a rank of {rank} was asked for", "give at least 1")
        if energy is not None and not 0 < energy <= 1:
            raise InputError(f"an energy of {energy:g} was asked for", "give a share above 0, up to 1")

    def of(self, parts: Decomposition) -> int:
        """Of one layer; at least 1, since PEFT has no layers without factors."""
        real = int((parts.values > _ROUNDING * parts.values[0]).sum())
        wanted = self.rank if self.energy is None else energy_rank(parts.values, self.energy)
        assert wanted is not None
        return max(1, min(real, wanted))


def _extracted(
    places: list[_Place], tuned: Checkpoint, origin: Checkpoint, size: _Size, work: Path, stages: Stages
) -> tuple[Contents, dict[str, float]]:
    """The adapter, and what each layer loses; each module is a file of work when it is done.

    Raises:
        InputError: There is nothing that an adapter could hold; no work is kept then.
    """
    pieces = work / _PIECES
    for number, one in enumerate(places):
        stages.report(f"{_STAGE}: {one.module}", number, len(places))
        file = pieces / f"{number}.safetensors"
        if not file.is_file():
            save_whole(file, *_piece(one, tuned, origin, size))
    stages.report(_STAGE, len(places), len(places))
    found = [_read(pieces / f"{number}.safetensors", one) for number, one in enumerate(places)]
    try:
        return _contents(found)
    except InputError:
        clear(work)
        raise


def _state(model: Checkpoint) -> list[object]:
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in model.files]
    return [model.config, files]


@dataclass(frozen=True)
class _Place:
    """A module of the class of the model, and its tensors by their names in it and in the files.

    `head` is the path of the head that has the same weight.
    """

    module: str
    kind: str
    tensors: Mapping[str, str]
    head: str | None = None


_LAYER, _EMBEDDING, _INPUTS_FIRST, _WHOLE = "layer", "embedding", "inputs first", "whole"


def _places(tuned: Checkpoint, origin: Checkpoint) -> list[_Place]:
    """Modules that hold tensors.

    Raises:
        InputError: The files hold tensors that belong to no module, or another number in one model.
    """
    if differs := sorted(tuned.tensors.keys() ^ origin.tensors.keys()):
        raise InputError(
            f"only one of {tuned.directory} and {origin.directory} holds {differs[0]}",
            "give a model and the one that it was fine-tuned from",
        )
    built = skeleton(origin.directory)
    names = FileNames.of(built, origin.tensors)
    stored, heads = names.stored, {shared: name for name, shared in names.tied.items()}
    places: list[_Place] = []
    seen: set[str] = set()
    for path, module in built.named_modules():
        own = {name: stored[f"{path}.{name}"] for name, _ in module.named_parameters(recurse=False)
               if f"{path}.{name}" in stored}  # fmt: skip
        own = {name: tensor for name, tensor in own.items() if tensor not in seen}
        seen.update(own.values())
        if own:
            places.append(_place(path, module, own, heads.get(f"{path}.weight")))
    left = [name for name in origin.tensors if name not in seen and origin.dtype(name).is_floating_point]
    for name in left:
        if not torch.equal(tuned.tensor(name), origin.tensor(name)):
            raise InputError(f"{name} differs, and is no parameter of a module of its own", _OTHER)
    return places


def _place(path: str, module: nn.Module, tensors: Mapping[str, str], head: str | None) -> _Place:
    """A module as it is kept; `head` is the name of a weight that is its own."""
    kind = _kind(module)
    if kind == _EMBEDDING and head is not None:
        # PEFT would add factors twice where it merges them.
        return _Place(path, _WHOLE, tensors, head.removesuffix(".weight"))
    return _Place(path, kind, tensors)


def _kind(module: nn.Module) -> str:
    if isinstance(module, Conv1D):
        return _INPUTS_FIRST
    if isinstance(module, nn.Embedding):
        return _EMBEDDING
    return _LAYER if isinstance(module, nn.Linear) else _WHOLE


def _piece(
    place: _Place, tuned: Checkpoint, origin: Checkpoint, size: _Size
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What an adapter holds of a module: nothing where it does not differ."""
    found: dict[str, Tensor] = {}
    note: dict[str, float] = {}
    values = {
        name: (_finite(tuned, tensor), _finite(origin, tensor)) for name, tensor in place.tensors.items()
    }
    for name, (new, old) in values.items():
        if new.shape != old.shape:
            raise InputError(
                f"{place.tensors[name]} has shape {list(new.shape)} in {tuned.directory} and "
                f"{list(old.shape)} in {origin.directory}",
                "give a model and the one that it was fine-tuned from",
            )
    if all(torch.equal(new, old) for new, old in values.values()):
        return found, note
    if place.kind == _WHOLE:
        return {name: new for name, (new, _) in values.items()}, note
    if "bias" in values and not torch.equal(*values["bias"]):
        found["bias"] = values["bias"][0]
    parts = decompose(values["weight"][0].double() - values["weight"][1].double())
    kept = size.of(parts)
    found["expand"], found["reduce"] = (factor.float() for factor in parts.factors(kept))
    squares = parts.values.square()
    note["lost"] = float(squares[kept:].sum() / squares.sum()) if kept else 0.0
    return found, note


def _finite(model: Checkpoint, name: str) -> Tensor:
    return check_finite(model.tensor(name), f"{name} in {model.tensors[name].file}")


@dataclass(frozen=True)
class _Found:
    place: _Place
    tensors: Mapping[str, Tensor]
    lost: float


def _read(file: Path, place: _Place) -> _Found:
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
        note = json.loads((opened.metadata() or {}).get("note", "{}")) or {}
    return _Found(place, tensors, float(note.get("lost", 0.0)))


def _contents(found: Iterable[_Found]) -> tuple[Contents, dict[str, float]]:
    layers, saved, biases, lost = [], {}, {}, {}
    for one in found:
        path, kind = one.place.module, one.place.kind
        if not one.tensors:
            continue
        if kind == _WHOLE:
            saved[path] = one.tensors
            if one.place.head is not None:  # PEFT ties nothing by itself
                saved[one.place.head] = one.tensors
            continue
        expand, reduce = one.tensors["expand"], one.tensors["reduce"]
        layers.append(Layer(path, expand, reduce, kind == _EMBEDDING, kind == _INPUTS_FIRST))
        lost[path] = one.lost
        if "bias" in one.tensors:
            biases[path] = one.tensors["bias"]
    if not layers and not saved:
        raise InputError(
            "the two models do not differ", "give a model and the one that it was fine-tuned from"
        )
    if not layers:
        raise InputError("the two models differ in norms alone", _OTHER)
    return Contents(tuple(layers), saved, biases), lost


def _write_lineage(
    directory: Path,
    tuned: Checkpoint,
    origin: Checkpoint,
    config: Mapping[str, Any],
    lost: Mapping[str, float],
) -> None:
    hashes = [lineage.base_hash(model) for model in (tuned, origin)]
    step = lineage.Step(
        method="extract_lora",
        config=dict(config),
        versions=lineage.versions(),
        scores={"lost": dict(lost), "worst": max(lost.values(), default=math.nan)},
        inputs=tuple(
            lineage.Input(name=model.name, hash=digest)
            for model, digest in zip((tuned, origin), hashes, strict=True)
        ),
    )
    lineage.write(directory, lineage.Base(name=origin.name, hash=hashes[1]), (step,))
