"""What an error counts when matrices are compared with each other."""

from pathlib import Path

import pytest
import tiny
import torch

from kanna.linalg.whitening import basis
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.in_memory import output_gradients
from kanna.methods.lowrank.metric import metric_of
from kanna.methods.lowrank.survey import weight_of


def test_fisher_information_is_weighed_once(tmp_path: Path) -> None:
    """The whole energy is sum_i mean_j(F_ij) ||w_i||^2, with F of the weight gradients of each window."""
    base, windows = tiny.family("llama", tmp_path / "llama"), tiny.windows(padded=False)
    _, found = tiny.opened(base)
    model = tiny.whole(base).requires_grad_(False)
    matrix = next(m for m in found.compressible if m.role == "down")
    *_, (_, sums) = output_gradients(model, [matrix.module], windows.batches(4), 0, fisher=True)
    config = LowRankConfig(keep=0.5, method="fwsvd", allocation="global").resolved(True, True)
    metric = metric_of(config, matrix, None, sums[matrix.module])
    path, layer = found.blocks[matrix.layer], model.get_submodule(found.blocks[matrix.layer])
    weight = weight_of(layer, path, matrix)
    energy = float((basis(weight, metric.inputs, metric.outputs).energy * metric.weight).sum())

    parameter = model.get_submodule(matrix.module).weight.requires_grad_(True)
    fisher = torch.zeros_like(parameter, dtype=torch.float64)
    for ids in windows.ids.split(1):
        logits = model(ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, parameter)
        fisher += gradient.double().square()
    expected = float((fisher.mean(1, keepdim=True) * parameter.detach().double().square()).sum())
    assert energy == pytest.approx(expected, rel=1e-4)
