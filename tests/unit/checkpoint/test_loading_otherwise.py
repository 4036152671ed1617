"""What docs/loading.md says of other ways to load: which fail, how, and what works instead."""

import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from exported import dense
from tiny_model import save_model

import kanna
from kanna.forms.low_rank import LowRankLinear

Auto = transformers.AutoModelForCausalLM


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    config = kanna.LowRankConfig(keep=0.6, method="plain", align=1)
    kanna.lowrank(save_model(root / "base"), root / "small", config)
    return root / "small"


def test_another_quantization_config_is_refused_and_takes_a_dense_export(small: Path, tmp_path: Path) -> None:
    other = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="quantized with KannaConfig"):
        Auto.from_pretrained(small, quantization_config=other)
    exported = dense(small, tmp_path / "dense")
    assert not hasattr(transformers.AutoConfig.from_pretrained(exported), "quantization_config")
    # it gets as far as the library that it asks for, which is not among those that kanna needs
    with pytest.raises((ImportError, ValueError, RuntimeError)) as refused:
        Auto.from_pretrained(exported, quantization_config=other)
    assert "KannaConfig" not in str(refused.value)


def test_from_config_gives_a_dense_model_of_other_weights(small: Path) -> None:
    loaded = Auto.from_pretrained(small)
    with torch.random.fork_rng(devices=[]):
        anew = Auto.from_config(transformers.AutoConfig.from_pretrained(small))
    assert isinstance(loaded.model.layers[0].mlp.up_proj, LowRankLinear)
    assert type(anew.model.layers[0].mlp.up_proj) is nn.Linear
    with pytest.raises(RuntimeError, match="Unexpected key"):
        anew.load_state_dict(loaded.state_dict())


def test_what_changes_linear_layers_changes_factors(small: Path) -> None:
    """As quantisation after loading does: each linear layer is replaced by another."""

    class Rounded(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.register_buffer("scale", layer.weight.detach().abs().amax(1, keepdim=True) / 127)
            self.register_buffer("codes", (layer.weight.detach() / self.scale).round().to(torch.int8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.codes * self.scale)

    def replaced(module: nn.Module) -> int:
        count = 0
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                setattr(module, name, Rounded(child))
                count += 1
            else:
                count += replaced(child)
        return count

    ids = torch.arange(12).reshape(1, 12)
    model = Auto.from_pretrained(small).eval()
    with torch.no_grad():
        before = model(ids).logits
        assert replaced(model) == 2 * 2 * 7
        after = model(ids).logits
    assert 0 < float((after - before).abs().max()) < 0.1 * float(before.abs().max())
