"""What a form needs to know of the layer that it replaces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from kanna.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """A linear layer y (m,) = W x (n,): its sizes, whether it adds a bias, whether its file holds W^T."""

    m: int
    n: int
    bias: bool
    transposed: bool


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
