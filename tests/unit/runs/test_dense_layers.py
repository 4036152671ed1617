"""From modules of forms to dense matrices and ordinary layers."""

from pathlib import Path

import pytest
import torch
import transformers
from exported import dense
from torch import nn
from toy import FAMILIES, NESTED, compress, logits, save_base
from transformers.pytorch_utils import Conv1D

import kanna
from kanna.checkpoint.reader import Checkpoint
from kanna.forms import Form, FormModule, LowRank
from kanna.models.inventory import inventory
from kanna.models.views import View, read
from kanna.runs.assemble import densify, matrix_weight

MODELS: dict[str, dict[str, Form]] = {
    **FAMILIES,
    **{f"{name} nested": forms for name, forms in NESTED.items()},
}


@pytest.fixture(params=sorted(set(MODELS) - {"bert"}))
def directories(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """(compressed, the same multiplied out)."""
    base = save_base(request.param.split()[0], tmp_path / "base")
    small = compress(base, tmp_path / "small", MODELS[request.param])
    return small, dense(small, tmp_path / "dense")


def test_matrix_weight_is_the_matrix_of_the_dense_model(directories: tuple[Path, Path]) -> None:
    small, plain = (kanna.load(directory)[0] for directory in directories)
    matrices = inventory(plain).matrices
    assert matrices
    for matrix in matrices:
        expected = read(plain.get_parameter(matrix.tensor), matrix.view)
        assert torch.equal(matrix_weight(plain.get_submodule(matrix.module), matrix.view), expected)
        found = matrix_weight(small.get_submodule(matrix.module), matrix.view)
        assert found.shape == matrix.shape
        assert torch.equal(found, expected)


def test_densify_gives_the_dense_model(directories: tuple[Path, Path], tmp_path: Path) -> None:
    small, plain = (kanna.load(directory)[0] for directory in directories)
    transposed = {path for path, module in plain.named_modules() if isinstance(module, Conv1D)}
    before = logits(small)
    random = torch.get_rng_state()
    densify(small, transposed)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(isinstance(module, FormModule) for module in small.modules())
    assert {p: type(m) for p, m in small.named_modules()} == {p: type(m) for p, m in plain.named_modules()}
    state, expected = small.state_dict(), plain.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert torch.equal(logits(small), logits(plain))
    torch.testing.assert_close(logits(small), before, rtol=1e-4, atol=1e-5)
    small.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in Checkpoint.open(tmp_path / "saved").config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(plain))


def test_densify_keeps_frozen_and_training() -> None:
    block = nn.Sequential(LowRank(2).build(4, 4, True).requires_grad_(False), nn.Linear(4, 4)).train()
    block[0].eval()
    densify(block)
    assert type(block[0]) is nn.Linear
    assert not block[0].weight.requires_grad
    assert not block[0].training
    assert block[1].weight.requires_grad


def test_a_layer_without_bias_where_a_conv1d_is() -> None:
    block = nn.Sequential(LowRank(2).build(4, 6))
    x = torch.randn(3, 6)
    before = block(x)
    densify(block, {"0"})
    assert isinstance(block[0], Conv1D)
    torch.testing.assert_close(block(x), before)


def test_another_module_is_our_mistake() -> None:
    with pytest.raises(TypeError, match="Embedding"):
        matrix_weight(nn.Embedding(2, 2), View())
