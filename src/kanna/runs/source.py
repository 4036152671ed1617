"""A model on disk as steps see it: opened once, hashed once, its matrices known in whatever form they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kanna.calibration.trial import Trial, try_out
from kanna.checkpoint import lineage
from kanna.checkpoint.applied import checked
from kanna.checkpoint.declared import Declared, file_prefix, forms_of, resolve, walk
from kanna.checkpoint.loader import lacks
from kanna.checkpoint.reader import Checkpoint, check_finite, refuse_eight_bits, refuse_quantized
from kanna.checkpoint.scale_sets import ScaleSet
from kanna.checkpoint.side_files import refuse_lost_modules
from kanna.checkpoint.ties import own_values, untie
from kanna.errors import InputError
from kanna.forms import Dense, Form, Rows
from kanna.forms.integer import CHANGE
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix
from kanna.models.names import FileNames
from kanna.models.skeleton import read_config, skeleton
from kanna.runs.assemble import matrix_weight
from kanna.runs.opened import Opened
from kanna.tasks.options import EvalOptions


class Source:
    """A model that a step starts from.

    Args:
        opened: Its directory.
        name: How lineage and card name it; None takes the checkpoint's.
        planned: Forms that a step before will leave behind: then nothing but shapes is known.
    """

    def __init__(
        self, opened: Opened, name: str | None = None, planned: Mapping[str, Form] | None = None
    ) -> None:
        self.opened = opened
        self.name = opened.name if name is None else name
        self._planned = planned

    @classmethod
    def open(cls, model: str | Path | Opened, name: str | None = None, finite: bool = False) -> Source:
        """Open a directory, or a hub id in the local cache; or take what is open.

        Args:
            finite: Whether its numbers must be finite; that is found when its bytes are read.

        Raises:
            InputError: Whatever is wrong with the directory; see `Checkpoint.open`.
        """
        return cls(Opened.open(model, finite=finite), name)

    def after(self, forms: Mapping[str, Form]) -> Source:
        """The model that a step will leave behind, as far as shapes go."""
        merged = {path: form for path, form in {**self.forms, **forms}.items() if not isinstance(form, Dense)}
        return Source(self.opened, self.name, merged)

    @property
    def checkpoint(self) -> Checkpoint:
        return self.opened.checkpoint

    @property
    def directory(self) -> Path:
        return self.checkpoint.directory

    @property
    def is_planned(self) -> bool:
        """Whether the model is still to be written, so that no weight of it can be read."""
        return self._planned is not None

    @cached_property
    def _built(self) -> nn.Module:
        """As the class makes it, with all ties of its config.json."""
        return skeleton(self.directory)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The dense model on the meta device; tied where the files do not hold both of a pair."""
        untie(self._built, own_values(self.names, self.checkpoint))
        return self._built

    @cached_property
    def names(self) -> FileNames:
        """Which name every parameter of the dense model has in the files; of a form's its sentinel."""
        return FileNames.of(self._built, self.checkpoint.tensors)

    @cached_property
    def inventory(self) -> Inventory:
        """Of the dense model: every matrix, whatever form it is stored in."""
        return inventory(self.skeleton, self.names.made)

    @cached_property
    def trial(self) -> Trial:
        """What one call of the model showed, before any weight is read.

        Raises:
            InputError: It cannot be run on tokens alone.
        """
        return try_out(read_config(self.directory), self.inventory)

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        """Module path -> form, of the modules that are not dense."""
        return forms_of(self.checkpoint.config) if self._planned is None else self._planned

    @cached_property
    def declared(self) -> Mapping[str, Declared]:
        """Module path -> its form and what it replaces; every tensor of them is in the files."""
        found = resolve(self.forms, self.skeleton, self.inventory.architecture)
        self._refuse_loose_changes()
        if not self.is_planned:
            for layer in found:
                file_prefix(layer, self.checkpoint.tensors, self.names, self.inventory.base_model_prefix)
        return {layer.path: layer for layer in found}

    def _refuse_loose_changes(self) -> None:
        """Raise InputError for a model that was saved while a set of scales lay over it."""
        loose = next((name for name in self.checkpoint.tensors if name.endswith(f".{CHANGE}")), None)
        if loose is not None:
            raise InputError(
                f"{self.directory} was saved while a set of scales lay over it ({loose})",
                "load it, and kanna.scales.save(model, NAME, BASE) puts the set beside its base",
            )

    @property
    def hash(self) -> str:
        """Of the model, whatever its files; see `lineage.base_hash`. All bytes are read once, for all checks.

        Raises:
            InputError: A number is not finite though it must be; its tensor is named.
        """
        return self.opened.base_hash

    @cached_property
    def lineage(self) -> lineage.Lineage | None:
        """What kanna recorded of it, after all its files were compared with that; None for a model of others.

        Raises:
            InputError: A file is missing or has changed.
        """
        recorded = lineage.read(self.directory)
        if recorded is not None:
            _ = self.opened.scan
        return recorded

    def whole(self, device: torch.device) -> Callable[[], nn.Module]:
        """Gives the model in float32 on a device; loaded once, and shared with whoever evaluates it."""
        return lambda: self.opened.loaded(EvalOptions(device=str(device)))

    def check_forms(self, accepts: Collection[str] | None, step: str, instead: str) -> None:
        """Raise InputError where the model is quantised by others, or in a form that `step` does not take."""
        if not self.is_planned:
            refuse_eight_bits(self.checkpoint, self.name)
        if not self.forms:
            if not self.is_planned:
                refuse_quantized(self.checkpoint.config, self.name)
            return
        if accepts is None:
            return
        for path, form in self.forms.items():
            other = next((inner.key for _, inner in walk(form) if inner.key not in accepts), None)
            if other is not None:
                takes = f"takes {', '.join(sorted(accepts))} forms" if accepts else "takes dense models only"
                raise InputError(
                    f"{self.name} is already compressed by kanna: {path} is stored in the form {other}, "
                    f"and the step {step} {takes}",
                    instead,
                )

    def check_whole(self) -> None:
        """Raise InputError for a weight that the files lack, or that an output of this model would lack."""
        refuse_lost_modules(self.directory)
        held = tuple(f"{path}." for path in self.declared)
        if missing := [name for name in self.names.missing if not name.startswith(held)]:
            raise lacks(self.directory, missing, self.inventory.architecture)

    def check_shapes(self) -> None:
        """Raise InputError where a tensor in the files has another shape than config.json describes."""
        stored = {f"{path}.{leaf}" for path in self.declared for leaf in ("weight", "bias")}
        refused = {matrix.tensor for matrix in self.inventory.refused}
        for parameter, expected in self.skeleton.named_parameters():
            name = self.file_name(parameter)
            if name is None or parameter in stored | refused:
                continue
            shape = self.checkpoint.shape(name)
            if shape != tuple(expected.shape):
                raise InputError(
                    f"{name!r} in {self.checkpoint.tensors[name].file} has shape {list(shape)}; "
                    f"config.json asks for {list(expected.shape)}",
                    "configuration and weights do not belong together: fetch the model again",
                )

    def form(self, matrix: Matrix) -> Form:
        """How one matrix is stored."""
        form = self.forms.get(matrix.module)
        if form is None:
            return Dense()
        if isinstance(form, Rows) and matrix.view.rows is not None:
            rows = matrix.view.rows
            wanted = (rows.start, rows.block, rows.stride, rows.count)
            return next((part for where, part in form.parts if where == wanted), form)
        return form

    def parameters(self, matrix: Matrix) -> int:
        """Numbers stored for a matrix now."""
        return self.form(matrix).parameters(*matrix.shape)

    def tensor_of(self, matrix: Matrix) -> str:
        """Name in the files of the parameter that holds a matrix; of a form's its sentinel.

        Raises:
            InputError: The files lack it.
        """
        name = self.file_name(matrix.tensor)
        if name is None:
            raise InputError(
                f"{self.directory} lacks the tensor {matrix.tensor}, which "
                f"{self.inventory.architecture} needs",
                "fetch the model again; or leave the matrix out of the selection",
            )
        return name

    def file_name(self, parameter: str) -> str | None:
        """Name in the files of a parameter; None where they lack it."""
        return self.names.get(parameter)

    def prefix(self, module: str) -> str:
        """Module path as the files have it."""
        name = self.file_name(f"{module}.weight")
        if name is None:
            raise InputError(f"{self.directory} lacks the tensor {module}.weight", "fetch the model again")
        return name.removesuffix(".weight")

    def tensors_of(self, module: str) -> list[str]:
        """Names in the files of all tensors of a module, dense or not, in the files' order."""
        prefix = self.prefix(module)
        held = self.declared.get(module)
        suffixes = ("weight", "bias") if held is None else tuple(held.tensors)
        names = {f"{prefix}.{suffix}" for suffix in suffixes}
        return [name for name in self.checkpoint.tensors if name in names]

    def dtype(self, module: str) -> torch.dtype:
        """In which the numbers of a module are stored."""
        return self.checkpoint.dtype(f"{self.prefix(module)}.weight")

    def module(self, path: str) -> nn.Module:
        """A module with its stored values; a dense one holds just its parameters, as the files have them."""
        prefix, held = self.prefix(path), self.declared.get(path)
        values = {
            name.removeprefix(f"{prefix}."): self.checkpoint.tensor(name) for name in self.tensors_of(path)
        }
        if held is None:
            holder = nn.Module()
            for name, value in values.items():
                holder.register_buffer(name, value)
            return holder
        sizes = held.geometry
        module = held.form.build(sizes.m, sizes.n, sizes.bias, self.dtype(path), "meta")
        module.load_state_dict(values, assign=True)
        for inner, change in self._changes(path).items():
            layer: Any = module.get_submodule(inner)
            layer.change(change)
        return module.requires_grad_(False)

    def _changes(self, path: str) -> Mapping[str, Tensor]:
        """Path inside a module -> change of its scales, by the set that lies over the model."""
        if self._scales is None:
            return {}
        return {
            name.removeprefix(path).removeprefix("."): change
            for name, change in self._scales.changes.items()
            if f"{name}.".startswith(f"{path}.")
        }

    @cached_property
    def _scales(self) -> ScaleSet | None:
        place = self.opened.scales
        return None if place is None else checked(self.directory, place)

    def weight(self, matrix: Matrix) -> Tensor:
        """The dense matrix (m, n), in the dtype of what is stored, whatever its form.

        Raises:
            InputError: It holds NaN or infinity, or the files lack it.
        """
        self.tensor_of(matrix)
        return check_finite(matrix_weight(self.module(matrix.module), matrix.view), matrix.name)
