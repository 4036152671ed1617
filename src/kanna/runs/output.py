"""The output directory: the source's tensors with the changed modules in their place."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kanna.checked import tagged_floats
from kanna.checkpoint.declared import quantization_config
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.side_files import copy_side_files
from kanna.checkpoint.writer import write_json, write_tensors
from kanna.forms import Dense, Form
from kanna.runs.source import Source
from kanna.runs.step import Changes


@dataclass(frozen=True)
class Layout:
    """Which file tensors are copied and which come from the changes.

    Args:
        specs: Of all tensors to be written, in the source's order.
        copied: Names taken from the source as they are.
        renamed: Full parameter name of a change -> name in the files.
        forms: Module path -> form, of all modules that will not be dense.
    """

    specs: tuple[TensorSpec, ...]
    copied: tuple[str, ...]
    renamed: Mapping[str, str]
    forms: Mapping[str, Form]

    @property
    def bytes(self) -> int:
        return sum(spec.bytes for spec in self.specs)

    @property
    def parameters(self) -> int:
        return sum(spec.numbers for spec in self.specs)


def plan_layout(source: Source, changes: Changes) -> Layout:
    """Put the tensors of every changed module where its first one lay, and drop all that it had before."""
    checkpoint = source.checkpoint
    renamed: dict[str, str] = {}
    places: dict[str, list[str]] = {}
    dropped: set[str] = set()
    for module in changes.forms:
        held = source.tensors_of(module)
        dropped.update(held)
        own = [name for name in changes.shapes if name.startswith(f"{module}.")]
        prefix = source.prefix(module)
        renamed |= {name: prefix + name.removeprefix(module) for name in own}
        places.setdefault(held[0], []).extend(own)
    for name in changes.shapes.keys() - renamed.keys():
        stored = source.file_name(name)
        if stored is None:
            raise KeyError(name)
        renamed[name] = stored
        dropped.add(stored)
        places.setdefault(stored, []).append(name)
    specs: list[TensorSpec] = []
    for stored in checkpoint.tensors:
        specs += [TensorSpec(renamed[name], *changes.shapes[name]) for name in places.get(stored, ())]
        if stored not in dropped:
            specs.append(TensorSpec(stored, checkpoint.dtype(stored), checkpoint.shape(stored)))
    copied = tuple(name for name in checkpoint.tensors if name not in dropped)
    forms = {**source.forms, **changes.forms}
    kept = {module: form for module, form in forms.items() if not isinstance(form, Dense)}
    return Layout(tuple(specs), copied, renamed, kept)


def write_model(directory: Path, source: Source, layout: Layout, changes: Changes) -> None:
    """Weights, config.json, and all that lies beside them."""
    changed = ((layout.renamed[name], tensor) for name, tensor in changes.tensors())
    write_tensors(directory, layout.specs, itertools.chain(source.checkpoint.stream(layout.copied), changed))
    config = {key: value for key, value in source.checkpoint.config.items() if key != "quantization_config"}
    if layout.forms:
        config["quantization_config"] = quantization_config(layout.forms)
    write_json(directory / "config.json", tagged_floats(config))
    copy_side_files(source.directory, directory, source.checkpoint.files)
