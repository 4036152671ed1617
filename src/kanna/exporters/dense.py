"""Multiplying every form out: an ordinary checkpoint that any tool reads, as large as the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kanna.checkpoint import card, lineage
from kanna.checkpoint.declared import Declared, file_prefix, forms_of, resolve
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.writer import (
    SHARD_BYTES,
    copy_side_files,
    output_directory,
    write_json,
    write_tensors,
)
from kanna.errors import InputError
from kanna.models.skeleton import skeleton


@dataclass(frozen=True)
class _Compressed:
    """A declared form, and the names of its tensors in the files by suffix."""

    prefix: str
    declared: Declared
    names: dict[str, str]

    def specs(self, dtype: torch.dtype) -> tuple[TensorSpec, ...]:
        shape = self.declared.geometry
        size = (shape.n, shape.m) if shape.transposed else (shape.m, shape.n)
        weight = TensorSpec(f"{self.prefix}.weight", dtype, size)
        return (weight, TensorSpec(f"{self.prefix}.bias", dtype, (shape.m,))) if shape.bias else (weight,)

    def tensors(self, checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
        loaded = {suffix: checkpoint.tensor(name) for suffix, name in self.names.items()}
        weight = self.declared.form.merge(loaded)
        yield f"{self.prefix}.weight", weight.T.contiguous() if self.declared.geometry.transposed else weight
        if self.declared.geometry.bias:
            yield f"{self.prefix}.bias", loaded[self.declared.form.bias_suffix]


Judge = Callable[[Path], Mapping[str, Any]]


def dense(
    model: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
    judge: Judge = lambda _: {},
) -> Path:
    """Write `model` with every form multiplied out, under the tensor names of its source.

    The dtype of the factors is kept (products in float32 or better); all other tensors and files are copied
    as they are. Memory: the tensors of one layer.

    Args:
        model: A checkpoint that kanna compressed.
        out: The new directory.
        force: Replace an `out` that is a checkpoint.
        max_shard_bytes: Largest safetensors file.
        judge: Called with the directory while it has a provisional name; what it returns is recorded as
            the step's scores.

    Returns:
        `out` as an absolute path.

    Raises:
        InputError: Nothing in `model` is compressed by kanna, it is damaged, or `out` cannot be written.
    """
    checkpoint = Checkpoint.open(model)
    layers = _compressed(checkpoint)
    lineage.verify(checkpoint.directory)
    specs = _specs(checkpoint, layers)
    target = Path(out).expanduser().absolute()
    with output_directory(target, force=force, needed_bytes=sum(s.bytes for s in specs)) as partial:
        write_tensors(partial, specs, _tensors(checkpoint, layers), max_shard_bytes=max_shard_bytes)
        config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
        write_json(partial / "config.json", config)
        copy_side_files(checkpoint.directory, partial)
        _write_history(checkpoint, partial, target.name, judge)
    return target


def _write_history(checkpoint: Checkpoint, directory: Path, name: str, judge: Judge) -> None:
    """The model card, and the lineage with this step added where the source has one."""
    history = lineage.read(checkpoint.directory)
    base = checkpoint.name if history is None else history.base.name
    summary = "The layers that kanna had compressed, multiplied out again: any tool reads this checkpoint."
    card.write(directory, card.Card(name, base, summary, needs_kanna=False, source=checkpoint.directory))
    scores = dict(judge(directory))
    if history is not None:
        config = {"format": "dense"}
        step = lineage.Step(method="export", config=config, versions=lineage.versions(), scores=scores)
        lineage.write(directory, history.base, (*history.steps, step))


def _compressed(checkpoint: Checkpoint) -> tuple[_Compressed, ...]:
    forms = forms_of(checkpoint.config)
    if not forms:
        raise InputError(
            f"{checkpoint.name} has no layer compressed by kanna, so there is nothing to multiply out",
            "give a directory that kanna wrote; this model is dense already",
        )
    model = skeleton(checkpoint.directory)
    prefix = str(getattr(model, "base_model_prefix", ""))
    found = resolve(forms, model, type(model).__name__)
    return tuple(_located(one, file_prefix(one, checkpoint.tensors, prefix)) for one in found)


def _located(declared: Declared, prefix: str) -> _Compressed:
    return _Compressed(prefix, declared, {suffix: f"{prefix}.{suffix}" for suffix in declared.tensors})


def _specs(checkpoint: Checkpoint, layers: tuple[_Compressed, ...]) -> list[TensorSpec]:
    """What will be written, in the order of the names."""
    replaced = {name for layer in layers for name in layer.names.values()}
    kept = [
        TensorSpec(name, checkpoint.dtype(name), checkpoint.shape(name))
        for name in checkpoint.tensors
        if name not in replaced
    ]
    merged = [spec for layer in layers for spec in layer.specs(checkpoint.dtype(layer.names["weight"]))]
    return sorted(kept + merged, key=lambda spec: spec.name)


def _tensors(checkpoint: Checkpoint, layers: tuple[_Compressed, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    replaced = {name for layer in layers for name in layer.names.values()}
    yield from checkpoint.stream(name for name in checkpoint.tensors if name not in replaced)
    for layer in layers:
        yield from layer.tensors(checkpoint)
