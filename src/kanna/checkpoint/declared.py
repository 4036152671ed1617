"""The forms that a config.json declares: found in a model, and found in the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kanna.checked import check_version
from kanna.checkpoint.safetensors_format import DTYPE_NAMES, TORCH_DTYPES, Stored
from kanna.errors import InputError
from kanna.forms import Dense, Form, from_json, install
from kanna.models.names import FileNames, aliases, tensor_name

METHOD = "kanna"
# Of quantization_config alone; kanna.json has a version of its own.
FORMAT_VERSION = 1
_KEYS = {"quant_method", "format_version", "forms"}
_WRITE_AGAIN = "fetch the checkpoint again, or write it again with kanna"


@dataclass(frozen=True)
class Geometry:
    """A linear layer y (m,) = W x (n,): its sizes, whether it adds a bias, whether its file holds W^T."""

    m: int
    n: int
    bias: bool
    transposed: bool


@dataclass(frozen=True)
class Declared:
    """A form and the layer it replaces.

    Args:
        path: Module path in the model at hand.
        form: How its matrix is stored.
        geometry: Of the layer it replaces.
    """

    path: str
    form: Form
    geometry: Geometry

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Suffix -> shape of what the files must hold."""
        return self.form.tensors(self.geometry.m, self.geometry.n, self.geometry.bias)


def quantization_config(forms: Mapping[str, Form]) -> dict[str, Any]:
    """The `quantization_config` of config.json for forms by module path (of the class in `architectures`)."""
    declared = {path: form.to_json() for path, form in sorted(forms.items())}
    return {"quant_method": METHOD, "format_version": FORMAT_VERSION, "forms": declared}


def forms_of(config: Mapping[str, Any]) -> dict[str, Form]:
    """Module path -> form, from a whole config.json; empty where kanna declared none.

    Raises:
        InputError: Newer format_version, unknown keys, an unknown form.
    """
    declared = config.get("quantization_config")
    if not isinstance(declared, Mapping) or declared.get("quant_method") != METHOD:
        return {}
    return parse_forms(declared)


def parse_forms(declared: Mapping[str, Any]) -> dict[str, Form]:
    """Module path -> form, from the `quantization_config` object itself."""
    where = "quantization_config of config.json"
    check_version(declared.get("format_version"), where, FORMAT_VERSION, _WRITE_AGAIN)
    if unknown := sorted(set(declared) - _KEYS):
        raise InputError(f"quantization_config of config.json has unknown keys {unknown}", "upgrade kanna")
    forms = declared.get("forms")
    if not isinstance(forms, Mapping):
        raise InputError("quantization_config of config.json has no object 'forms'", _WRITE_AGAIN)
    return {path: _parse_form(path, data) for path, data in forms.items()}


def walk(form: Form) -> Iterator[tuple[str, Form]]:
    """(name, form) of the form itself, under the empty name, and of all forms inside it at any depth.

    A step that takes only some forms looks at each one's `key`; a name such as `expand.basis` says where
    the form lies.
    """
    yield "", form
    for name, child in form.nested.items():
        for inner, below in walk(child):
            yield f"{name}.{inner}" if inner else name, below


def resolve(forms: Mapping[str, Form], model: nn.Module, architecture: str | None) -> tuple[Declared, ...]:
    """Find the layer of every declared form in a model, adding or removing `base_model_prefix`.

    Args:
        forms: Keyed by module paths of the class `architecture`.
        model: Dense as yet; another class than `architecture` (such as its base) may lack the head's forms.
        architecture: architectures[0] of config.json.

    Raises:
        InputError: A form without a layer, or whose layer is not linear or of another size.
    """
    prefix = getattr(model, "base_model_prefix", "")
    other_class = architecture is not None and type(model).__name__ != architecture
    modules = dict(model.named_modules())
    layers = []
    for path, form in forms.items():
        name = tensor_name(path, modules, prefix)
        if name is not None:
            layers.append(Declared(name, form, geometry(modules[name], name)))
            try:
                _ = layers[-1].tensors
            except InputError as error:
                what = f"{name} in config.json: {error.problem}"
                raise InputError(what, error.remedy or _WRITE_AGAIN) from error
        elif not (other_class and prefix and not path.startswith(f"{prefix}.")):  # of a head it lacks
            raise InputError(
                f"config.json declares a form for {path}, and {type(model).__name__} has no such module",
                "load it as the class named by 'architectures' in config.json, or write it again",
            )
    return tuple(layers)


def file_prefix(
    declared: Declared, tensors: Mapping[str, Stored], names: FileNames, base_model_prefix: str
) -> str:
    """The module path under which the files hold a form; all its tensors are there with their shapes.

    Args:
        names: Of the dense model.

    Raises:
        InputError: A tensor is missing, of another shape, or of another kind of dtype; it is named.
    """
    renamed = names.module(declared.path)
    candidates = (*(() if renamed is None else (renamed,)), *aliases(declared.path, base_model_prefix))
    prefix = max(candidates, key=lambda path: sum(f"{path}.{s}" in tensors for s in declared.tensors))
    for suffix, shape in declared.tensors.items():
        _check_stored(f"{prefix}.{suffix}", shape, declared.form, suffix, tensors)
    return prefix


def put_forms(
    model: nn.Module, forms: Mapping[str, Form], architecture: str | None, tensors: Mapping[str, Stored]
) -> tuple[Declared, ...]:
    """Check every form against the model and the files' headers, then swap their layers for modules of them.

    Raises:
        InputError: See `resolve` and `file_prefix`.
    """
    layers = resolve(forms, model, architecture)
    names = FileNames.of(model, tensors)
    for layer in layers:
        file_prefix(layer, tensors, names, str(getattr(model, "base_model_prefix", "")))
    for layer in layers:
        old: Any = model.get_submodule(layer.path)
        sizes = layer.geometry
        new = layer.form.build(sizes.m, sizes.n, sizes.bias, old.weight.dtype, old.weight.device)
        for module in new.modules():
            # transformers must not initialise it by the name of its class or path: its tensors are all there.
            module._is_hf_initialized = True  # type: ignore[assignment]
        install(model, layer.path, new.train(old.training))
    return layers


def geometry(module: nn.Module, path: str) -> Geometry:
    """The geometry of an nn.Linear or of a transposed `Conv1D`.

    Raises:
        InputError: The module at `path` is neither.
    """
    if isinstance(module, nn.Linear):
        return Geometry(module.out_features, module.in_features, module.bias is not None, False)
    if isinstance(module, Conv1D):
        n, m = module.weight.shape
        return Geometry(m, n, True, True)
    raise InputError(
        f"a form is declared for {path}, which is a {type(module).__name__} and not a linear layer",
        "write the checkpoint again with this version of transformers",
    )


def _parse_form(path: str, data: object) -> Form:
    try:
        form = from_json(data)
    except InputError as error:
        raise InputError(f"{path} in config.json: {error.problem}", error.remedy) from error
    if isinstance(form, Dense):
        raise InputError(f"{path} in config.json: a dense layer is not declared", _WRITE_AGAIN)
    return form


def _check_stored(
    name: str, shape: tuple[int, ...], form: Form, suffix: str, tensors: Mapping[str, Stored]
) -> None:
    stored = tensors.get(name)
    if stored is None:
        raise InputError(
            f"the files hold no tensor {name!r} of shape {list(shape)}, which the {form.key} form needs",
            _WRITE_AGAIN,
        )
    if stored.shape != shape:
        place = f"{name!r} in {stored.file} has shape {list(stored.shape)}"
        raise InputError(f"{place}; the {form.key} form needs {list(shape)}", _WRITE_AGAIN)
    dtype = TORCH_DTYPES[stored.dtype]
    # Weights may be of any floating dtype; a form says where it holds whole numbers.
    expected = form.dtype_of(suffix, dtype if dtype.is_floating_point else torch.float32)
    if stored.dtype != DTYPE_NAMES[expected]:
        raise InputError(
            f"{name!r} in {stored.file} is {stored.dtype}; the {form.key} form needs {DTYPE_NAMES[expected]}",
            _WRITE_AGAIN,
        )
