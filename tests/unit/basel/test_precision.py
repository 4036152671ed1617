"""Products in bfloat16: faster where the machine has it, and nothing that is trained is rounded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kanna
from kanna.errors import InputError
from kanna.methods.basel.config import BaselConfig
from kanna.methods.basel.plan import make_plan
from kanna.runs.source import Source
from kanna.runs.step import Inputs
from kanna.training.optimiser import Optimiser

Base = Callable[[str], Path]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_products_are_rounded_and_what_is_trained_is_not(
    family: str, bases: Base, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused layers put parts in bfloat16 together, and add biases of float32."""
    stepped, seen = Optimiser.step, set()

    def step(self: Optimiser, *given: Any) -> None:
        stepped(self, *given)
        seen.update(value.dtype for name, value in self.tensors().items())

    monkeypatch.setattr(Optimiser, "step", step)
    losses = {}
    for precision in ("float32", "bfloat16"):
        given = {"data": rows, "keep": 0.5, "rows": 18, "epochs": (0, 1, 1), "prune_events": 1}
        config = BaselConfig(**given, precision=precision)
        result = kanna.basel(bases(family), tmp_path / precision, config)
        assert result.passed
        losses[precision] = result.figures["training_loss"]
    assert seen == {torch.float32}
    assert losses["float32"] != losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    written = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}


def test_a_device_without_it_is_refused(bases: Base, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    config = BaselConfig(data=rows, keep=0.5, precision="bfloat16")
    with pytest.raises(InputError, match="cuda does not compute in bfloat16"):
        make_plan(Source.open(bases("llama")), config, Inputs(device=torch.device("cuda")))
