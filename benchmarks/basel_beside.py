"""Magnitude pruning that is trained as Basel is, which `kanna` does not do."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import kanna
from kanna.forms.base import install
from kanna.models.inventory import Matrix
from peqa_beside import Learnt, learnt_of, train_learnt, write_dense


class Masked(Learnt):
    """A matrix of which some entries are zero and stay so."""

    def __init__(self, plain: nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self.bias = plain.bias
        self.weight = nn.Parameter(plain.weight.detach() * mask)
        self.register_buffer("mask", mask)

    def dense(self) -> Tensor:
        return self.weight * self.mask


def pruned(model_dir: Path, config: kanna.BaselConfig, keep: float, out: Path) -> tuple[float, float]:
    """Keep the entries that are largest over all matrices that Basel would select, and train them.

    Where the entries stand is not counted: a file of them would be larger than one of as many numbers.

    Args:
        config: Data, steps and rate of the factors are taken.
        out: A new directory, of the dense model.

    Returns:
        The least loss on rows held out, and the share of entries that is not zero.
    """
    selected = kanna.basel(model_dir, None, config, dry_run=True).plan.selected
    model, _ = kanna.load(model_dir, dtype="float32")
    model.requires_grad_(False)
    masks = _largest({matrix.module: _plain(model, matrix).weight for matrix in selected}, keep)
    for path, mask in masks.items():
        install(model, path, Masked(model.get_submodule(path), mask))
    learnt = learnt_of(model)
    loss = train_learnt(model, learnt, model_dir, config, out.with_name(f"{out.name}-training"))
    dense = {path: model.get_submodule(path).dense().detach() for path in masks}
    write_dense(model_dir, dense, out)
    kept = sum(int(weight.count_nonzero()) for weight in dense.values())
    return loss, kept / sum(weight.numel() for weight in dense.values())


def _plain(model: nn.Module, matrix: Matrix) -> nn.Linear:
    module = model.get_submodule(matrix.module)
    if not isinstance(module, nn.Linear) or "#" in matrix.name:
        raise SystemExit(f"{matrix.name} is no layer of its own; pruning is measured on models without such")
    return module


def _largest(weights: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Masks of the entries of largest magnitude, a share `keep` of all."""
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    mask = torch.zeros_like(flat)
    mask[flat.topk(round(keep * len(flat))).indices] = 1
    parts: Sequence[Tensor] = mask.split([weight.numel() for weight in weights.values()])
    return {path: part.view_as(weights[path]) for path, part in zip(weights, parts, strict=True)}
