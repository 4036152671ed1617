"""`benchmarks/peqa_memory.py`: what it counts of what autograd keeps."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

_FILE = Path(__file__).parents[3] / "benchmarks" / "peqa_memory.py"
TOKENS, INPUTS, OUTPUTS = 5, 6, 4


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peqa_memory", _FILE)
    assert spec is not None and spec.loader is not None
    module = sys.modules["peqa_memory"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Model(nn.Module):
    """One matrix of a block, used as it is or multiplied first."""

    def __init__(self, made: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(INPUTS, OUTPUTS, bias=False)])
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layers[0].weight
        y = functional.linear(x, 2 * weight if self.made else weight)  # type: ignore[operator]
        return y * y


@pytest.mark.parametrize("made", [False, True])
def test_a_weight_counts_once_and_so_does_one_that_is_made_on_the_way(script: ModuleType, made: bool) -> None:
    """Kept are the weight or its double, the inputs only where the weight learns, and the outputs squared."""
    model = Model(made).requires_grad_(False)
    saved = script.Saved(model, TOKENS)
    x = torch.ones(TOKENS, INPUTS, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        model(x)
        model(x)
    doubled = 2 if made else 1  # each pass makes its own
    assert saved.bytes(of_weights=True) == 4 * INPUTS * OUTPUTS * doubled
    assert saved.bytes() == 4 * (INPUTS * OUTPUTS * doubled + 2 * TOKENS * OUTPUTS)
    model.requires_grad_(True)
    learning = script.Saved(model, TOKENS)
    with torch.autograd.graph.saved_tensors_hooks(learning, lambda tensor: tensor):
        model(x)
    assert learning.bytes() == 4 * (INPUTS * OUTPUTS + TOKENS * OUTPUTS + TOKENS * INPUTS)


def test_what_is_not_installed_has_a_row(script: ModuleType) -> None:
    options = script.arguments([])
    lora = script.Cost("LoRA, rank 8", 10, 100, 100, 50, 0, 2.0, 1)
    scales = script.Cost("kanna tune, channel", 1, 80, 60, 10, 8, 2.5, 1)
    lines = list(script.table({"lora": lora, "qlora": None, "channel": scales}, options))
    assert lines[3].startswith("| QLoRA, rank 8 | not installed |")
    assert "0.80x" in lines[4] and "1.25x" in lines[4]
    said = list(script.aims({"lora": lora, "qlora": None, "channel": scales}))
    assert [line.rpartition(": ")[2] for line in said] == ["reached", "reached"]
