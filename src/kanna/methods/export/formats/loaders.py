"""Reading an export back as others do, and running it."""

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kanna.calibration.calls import body_call
from kanna.checkpoint.loader import load_weights
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import KannaError
from kanna.forms import install
from kanna.methods.export.formats.target import Logits, NotInstalled
from kanna.methods.export.held import Held
from kanna.quant.grid import Codes
from kanna.runs.assemble import bias_of
from kanna.runs.source import Source


def installed(module: str, package: str, least: str | None = None) -> Any:
    """The module of a package.

    Args:
        least: The oldest version that will do.

    Raises:
        NotInstalled: It is not there, or too old.
    """
    before = dict(os.environ)  # some packages set variables when they are imported
    try:
        found = import_module(module)
    except ImportError:
        raise NotInstalled(f"{package} is not installed") from None
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
    with suppress(PackageNotFoundError):
        if least is not None and _numbers(version(package)) < _numbers(least):
            raise NotInstalled(f"{package} {version(package)} is installed, and {least} or later is needed")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """Of a version, up to the first part that is no number."""
    parts = itertools.takewhile(str.isdecimal, text.split("."))
    return tuple(map(int, parts))


def through_transformers(directory: Path, source: Source, **given: Any) -> nn.Module:
    """The model of an export in float32, by `from_pretrained` alone; every weight came from its files."""
    architecture: Any = type(source.skeleton)
    model, report = architecture.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, output_loading_info=True, **given
    )
    if report["missing_keys"]:
        raise KannaError(f"transformers found no values for {sorted(report['missing_keys'])[:3]}")
    loaded: nn.Module = model.eval()
    return loaded


def with_codes(source: Source, layers: Sequence[Held], read: Mapping[str, Codes]) -> nn.Module:
    """kanna's own model in float32 with the matrices that were read back in the place of its own."""
    model = load_weights(source.checkpoint, torch.float32, None, source.opened.scales)
    for layer in layers:
        bias = bias_of(model.get_submodule(layer.path))
        with torch.device("meta"):
            linear = nn.Linear(layer.n, layer.m, bias=bias is not None)
        linear.weight = nn.Parameter(read[layer.path].weight, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.float(), requires_grad=False)
        install(model, layer.path, linear)
    return model


def read_back(directory: Path, layers: Sequence[Held], names: Sequence[str], codes: Any) -> dict[str, Codes]:
    """Every layer's matrix by `codes(tensors, layer)`, from the files of an export."""
    files = Checkpoint.open(directory)
    return {
        layer.path: codes({name: files.tensor(f"{layer.prefix}.{name}") for name in names}, layer)
        for layer in layers
    }


def logits_of(model: nn.Module) -> Logits:
    """What a model of torch says; one without a head gives its hidden states."""

    def logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            result = body_call(model, ids)
        found: Tensor = result.logits if hasattr(result, "logits") else result[0]
        return found.float()

    return logits
