"""Taking over a model that others quantised: its codes, zero-points and scales become forms of kanna."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.checked import read_json, tagged_floats
from kanna.checkpoint import card, lineage
from kanna.checkpoint.declared import quantization_config
from kanna.checkpoint.outputs import final_name
from kanna.checkpoint.packed import compressed, gptq
from kanna.checkpoint.packed.layers import Layer, Packing, find, stored
from kanna.checkpoint.reader import Checkpoint, check_finite
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.side_files import copy_side_files
from kanna.checkpoint.writer import output_directory, write_json, write_tensors
from kanna.errors import InputError
from kanna.forms import Int
from kanna.heard import Listener, heard
from kanna.models.inventory import inventory
from kanna.models.skeleton import skeleton
from kanna.progress import Progress, told
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.probe import Verdict, verify_output
from kanna.runs.unfinished import sole_writer

_SETTINGS = "quantize_config.json"
_READERS: Mapping[object, Callable[[Mapping[str, Any]], Packing]] = {
    "gptq": gptq.read,
    "compressed-tensors": compressed.read,
}


@dataclass(frozen=True)
class Imported:
    """What was written.

    Args:
        out: The directory.
        format: What it came from.
        layers: How many are in whole numbers.
        bytes: Of the weights.
        verdict: What reading back showed.
    """

    out: Path
    format: str
    layers: int
    bytes: int
    verdict: Verdict

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "import",
            "out": str(self.out),
            "format": self.format,
            "layers": self.layers,
            "bytes": self.bytes,
            "verdict": self.verdict.to_dict(),
        }


@dataclass(frozen=True)
class _Taken:
    """A model of others, read as far as headers go."""

    checkpoint: Checkpoint
    packing: Packing
    layers: tuple[Layer, ...]
    dtype: torch.dtype

    def form(self, layer: Layer) -> Int:
        grid = self.packing.grid(layer)
        return Int(grid.bits, grid.group, grid.symmetric)

    def shapes(self, layer: Layer) -> list[TensorSpec]:
        """Of what is written for a layer, its bias apart."""
        form = self.form(layer)
        return [
            TensorSpec(f"{layer.prefix}.{suffix}", form.dtype_of(suffix, self.dtype), shape)
            for suffix, shape in form.tensors(layer.m, layer.n, False).items()
        ]


def import_quantized(
    model: str | Path, out: str | Path, *, force: bool = False, progress: Listener = False
) -> Imported:
    """Write a GPTQ or compressed-tensors model as one of kanna; every code stays as it is.

    Args:
        model: Directory, or hub id in the local cache.
        out: New directory.

    Returns:
        What was taken over, and whether what was written is read back soundly (`passed`).

    Raises:
        InputError: Another format, or what kanna's own form does not hold, by the name of the layer; before
            anything is written.
    """
    progress = heard(progress)
    taken = _taken(model)
    place = final_name(out)
    refuse_input(place, taken.checkpoint.directory)
    refuse_existing(place, force)
    known = lineage.verify(taken.checkpoint.directory)
    for layer in told(progress, "read", taken.layers):  # everything is looked at before anything is written
        _codes(taken, layer)
    with sole_writer(place, force):
        return _written(taken, known, place, force, progress)


def _taken(model: str | Path) -> _Taken:
    checkpoint = Checkpoint.open(model)
    config = _settings(checkpoint)
    method = config.get("quant_method")
    if method not in _READERS:
        raise InputError(
            f"{checkpoint.name} is not quantised in a way that kanna takes over (quant_method {method!r})",
            f"known: {', '.join(map(str, _READERS))}",
        )
    packing: Packing = _READERS[method](config)
    built = skeleton(checkpoint.directory)
    layers = find(checkpoint, built, packing.marker)
    return _Taken(checkpoint, packing, layers, _dtype(checkpoint))


def _settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """quantization_config, or the file of its own that early writers of GPTQ left."""
    declared = checkpoint.config.get("quantization_config")
    if isinstance(declared, Mapping):
        return declared
    path = checkpoint.directory / _SETTINGS
    if path.is_file():
        return {"quant_method": "gptq", **read_json(path)}
    raise InputError(
        f"{checkpoint.name} is not quantised: its config.json has no quantization_config",
        "kanna quantize MODEL --bits 4 --out BASE quantises it",
    )


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    """In which the model computes: that of config.json, else float16, as most such models."""
    named = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")).removeprefix("torch.")
    found = getattr(torch, named, None)
    return found if found in (torch.float32, torch.float16, torch.bfloat16) else torch.float16


def _codes(taken: _Taken, layer: Layer) -> dict[str, Tensor]:
    """What the form stores of a layer."""
    codes = taken.packing.codes(layer, stored(taken.checkpoint, layer, taken.packing.suffixes))
    check_finite(codes.scale, layer.path)
    form = taken.form(layer)
    return form.pack(codes.packed(), dtype=taken.dtype)


def _tensors(taken: _Taken, copied: list[str], progress: Progress) -> Iterator[tuple[str, Tensor]]:
    yield from taken.checkpoint.stream(copied)
    for layer in told(progress, "import", taken.layers):
        for suffix, value in _codes(taken, layer).items():
            yield f"{layer.prefix}.{suffix}", value


def _written(
    taken: _Taken, known: lineage.Lineage | None, place: Path, force: bool, progress: Progress
) -> Imported:
    checkpoint, packing = taken.checkpoint, taken.packing
    markers = {f"{layer.prefix}.{packing.marker}": layer for layer in taken.layers}
    replaced = {f"{layer.prefix}.{suffix}" for layer in taken.layers for suffix in packing.suffixes}
    copied = [name for name in checkpoint.tensors if name not in replaced]
    specs: list[TensorSpec] = []
    for name in checkpoint.tensors:
        specs += taken.shapes(markers[name]) if name in markers else []
        if name not in replaced:
            specs.append(TensorSpec(name, checkpoint.dtype(name), checkpoint.shape(name)))
    size = sum(spec.bytes for spec in specs)
    with output_directory(place, force=force, needed_bytes=size) as partial:
        write_tensors(partial, specs, _tensors(taken, copied, progress))
        forms = {layer.path: taken.form(layer) for layer in taken.layers}
        config = {**checkpoint.config, "quantization_config": quantization_config(forms)}
        write_json(partial / "config.json", tagged_floats(config))
        copy_side_files(checkpoint.directory, partial, checkpoint.files)
        (partial / _SETTINGS).unlink(missing_ok=True)
        progress("verify", 0, 1)
        built = skeleton(partial)
        parameters = sum(parameter.numel() for parameter in built.parameters())
        verdict, _ = verify_output(partial, inventory(built), None, parameters)
        progress("verify", 1, 1)
        done = Imported(place, packing.format, len(taken.layers), size, verdict)
        card.write(partial, _card(checkpoint, known, done))
        _record(partial, checkpoint, known, done)
    return done


def _record(partial: Path, checkpoint: Checkpoint, known: lineage.Lineage | None, done: Imported) -> None:
    step = lineage.Step(
        method="import",
        config={"format": done.format},
        versions=lineage.versions(),
        threads=torch.get_num_threads(),
        scores={
            "imported_from": {"name": checkpoint.name, "hash": lineage.base_hash(checkpoint)},
            "layers": done.layers,
            "model_bytes_before": checkpoint.bytes,
            "model_bytes_after": done.bytes,
            "verdict": done.verdict.to_dict(),
        },
    )
    hashed: str = step.scores["imported_from"]["hash"]
    base = lineage.Base(name=checkpoint.name, hash=hashed) if known is None else known.base
    lineage.write(partial, base, (*(() if known is None else known.steps), step))


def _card(checkpoint: Checkpoint, known: lineage.Lineage | None, done: Imported) -> card.Card:
    return card.Card(
        title=done.out.name,
        base_model=checkpoint.name if known is None else known.base.name,
        summary=f"{checkpoint.name}, which is in the format {done.format}, taken over: every code as it was.",
        tables=[card.Table("What it is", ("what", "value"), [("layers in whole numbers", done.layers)])],
        tags=("quantized",),
        source=checkpoint.directory,
    )
