"""What kanna computes block by block from files, computed plainly from whole models in memory."""

from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from kanna.calibration.windows import Windows, packed, padded
from kanna.checkpoint.reader import Checkpoint
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.models.names import FileNames
from kanna.models.skeleton import skeleton
from kanna.models.views import read, read_bias
from kanna.tasks.data.rows import read_rows
from kanna.tasks.tokens.tokenizer import load_tokenizer, predicts_next_token


def calibration(base: Path, text: Path, **changes: Any) -> Windows:
    """The windows that a run with the settings for tiny models uses."""
    settings = tiny.SETTINGS | changes
    make = packed if predicts_next_token(Checkpoint.open(base).config) else padded
    return make(read_rows(text), load_tokenizer(base), settings["tokens"], settings["context"], 0)


def inputs(model: nn.Module, matrices: tuple[Matrix, ...], windows: Windows) -> dict[str, Tensor]:
    """Matrix name -> (tokens, n) float64 of what it reads, padding left out, by hooks on the whole model."""
    seen: dict[str, list[Tensor]] = {matrix.module: [] for matrix in matrices}
    handles = []
    for path, found in seen.items():

        def note(_: nn.Module, args: tuple[Tensor, ...], found: list[Tensor] = found) -> None:
            found.append(args[0].reshape(-1, args[0].shape[-1]).double())

        handles.append(model.get_submodule(path).register_forward_pre_hook(note))
    with torch.no_grad():
        for ids, mask in zip(windows.ids, windows.mask, strict=True):
            model(ids[None], attention_mask=mask[None].long())
    for handle in handles:
        handle.remove()
    kept = windows.mask.flatten()
    return {matrix.name: torch.cat(seen[matrix.module])[kept] for matrix in matrices}


def weights(directory: Path, found: Inventory) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrix name -> its weight (m, n) and bias (m,) in float64, zero where it has none."""
    checkpoint = Checkpoint.open(directory)
    names = FileNames.of(skeleton(directory), checkpoint.tensors)

    def tensor(name: str) -> Tensor | None:
        stored = names.get(name)
        return None if stored is None else checkpoint.tensor(stored)

    result = {}
    for matrix in found.compressible:
        parameter, bias = tensor(matrix.tensor), tensor(f"{matrix.module}.bias")
        assert parameter is not None
        weight = read(parameter, matrix.view).double()
        zero = weight.new_zeros(len(weight))
        result[matrix.name] = weight, zero if bias is None else read_bias(bias, matrix.view).double()
    return result


def error(
    x: Tensor, x_hat: Tensor, original: tuple[Tensor, Tensor], replaced: tuple[Tensor, Tensor]
) -> float:
    """Sum over tokens of || W x + b - W' x^ - b' ||^2."""
    difference = x @ original[0].T + original[1] - x_hat @ replaced[0].T - replaced[1]
    return float(difference.square().sum())
