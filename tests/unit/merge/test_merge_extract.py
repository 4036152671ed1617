"""Adapters out of fine-tuned models: PEFT loads them, and with all ranks they give these back."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from merge_models import save_model, weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import kanna


def changed(base: Path, out: Path, names: dict[str, float]) -> Path:
    """A copy whose tensors with these parts in their names are moved at random."""
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(out)
    random = torch.Generator().manual_seed(8)
    tensors = load_file(out / "model.safetensors")
    for name, values in tensors.items():
        size = next((size for part, size in names.items() if part in name), 0.0)
        tensors[name] = values + size * torch.randn(values.shape, generator=random)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("bases")
    gpt2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    llama = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        GPT2LMHeadModel(gpt2).save_pretrained(room / "gpt2")
        LlamaForCausalLM(llama).save_pretrained(room / "untied")
    return {
        "tied": save_model(room / "tied", 1, torch.float32),
        "gpt2": room / "gpt2",
        "untied": room / "untied",
    }


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 13)[None]).logits


ALL = {"norm": 0.1, "ln_": 0.1, "bias": 0.1, "": 0.05}


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("tied", ALL),
        ("untied", ALL),
        ("gpt2", ALL),
        ("tied", {"q_proj": 0.1, "layers.1.mlp.up_proj": 0.2}),
        ("untied", {"lm_head": 0.1, "embed_tokens": 0.1}),
    ],
)
def test_all_ranks_give_the_fine_tuned_model_back(
    family: str, names: dict[str, float], bases: dict[str, Path], tmp_path: Path
) -> None:
    """By PEFT, beside the base and merged into it, and by a merge of base and adapter."""
    base, tuned = bases[family], changed(bases[family], tmp_path / "tuned", names)
    done = kanna.merge_extract_lora(tuned, base, tmp_path / "lora", rank=1000)
    assert done.lost_share == 0
    expected = logits(AutoModelForCausalLM.from_pretrained(tuned))
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora")
    found = logits(loaded)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert float((logits(loaded.merge_and_unload()) - expected).abs().max()) < 1e-5 * float(
        expected.abs().max()
    )
    if len(names) == 2:
        before, after = weights(base), weights(tuned)
        differ = {
            name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])
        }
        assert set(done.ranks) == differ

    given = {
        "merge_method": "linear",
        "models": [{"model": f"{base}+{tmp_path / 'lora'}", "parameters": {"weight": 1}}],
    }
    assert kanna.merge(given, tmp_path / "merged").passed
    for name, values in weights(tmp_path / "merged").items():
        assert float((values - weights(tuned)[name]).abs().max()) < 1e-5


def test_the_best_factors_of_a_rank(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["tied"]
    tuned = changed(base, tmp_path / "tuned", {"q_proj": 0.1, "up_proj": 0.1})
    done = kanna.merge_extract_lora(tuned, base, tmp_path / "lora", rank=5)
    assert set(done.ranks.values()) == {5}
    name = "model.layers.1.mlp.up_proj"
    delta = (weights(tuned)[f"{name}.weight"] - weights(base)[f"{name}.weight"]).double()
    values = torch.linalg.svdvals(delta)
    lost = float(values[5:].square().sum() / values.square().sum())
    assert done.lost[name] == pytest.approx(lost, rel=1e-6)
    file = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    a, b = (file[f"base_model.model.{name}.lora_{one}.weight"].double() for one in "AB")
    assert float((b @ a - delta).square().sum() / delta.square().sum()) == pytest.approx(lost, rel=1e-5)

    half = kanna.merge_extract_lora(tuned, base, tmp_path / "half", energy=0.5)
    rank = half.ranks[name]
    share = values.square().cumsum(0) / values.square().sum()
    assert share[rank - 1] >= 0.5 > share[rank - 2]


def test_ranks_that_are_not_there_are_not_written(bases: dict[str, Path], tmp_path: Path) -> None:
    """A difference of rank 2 has two columns, whatever is asked for; the adapter says so by layer."""
    base = bases["tied"]
    tuned = changed(base, tmp_path / "tuned", {"q_proj": 0.1})
    file = tuned / "model.safetensors"
    tensors, name = load_file(file), "model.layers.0.mlp.up_proj.weight"
    random = torch.Generator().manual_seed(1)
    shape = tensors[name].shape
    tensors[name] += torch.randn(shape[0], 2, generator=random) @ torch.randn(2, shape[1], generator=random)
    save_file(tensors, file, {"format": "pt"})
    done = kanna.merge_extract_lora(tuned, base, tmp_path / "lora", rank=8)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert done.ranks["model.layers.0.self_attn.q_proj"] == config["r"] == 8
    assert done.ranks["model.layers.0.mlp.up_proj"] == 2
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.0.mlp.up_proj": 2}


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({}, "give one of rank and energy"),
        ({"rank": 4, "energy": 0.5}, "give one of rank and energy"),
        ({"rank": 0}, "a rank of 0"),
        ({"energy": 1.5}, "an energy of 1.5"),
    ],
)
def test_sizes_that_are_none(
    sizes: dict[str, Any], said: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(kanna.InputError, match=said):
        kanna.merge_extract_lora(bases["tied"], bases["tied"], tmp_path / "lora", **sizes)


def test_models_that_no_adapter_leads_between(bases: dict[str, Path], tmp_path: Path) -> None:
    tied, gpt2 = bases["tied"], bases["gpt2"]
    tuned = changed(tied, tmp_path / "tuned", {"norm": 0.1})
    for one, other, said in (
        (tied, tied, "do not differ"),
        (tuned, tied, "differ in norms alone"),
        (gpt2, tied, "is another architecture"),
        (save_model(tmp_path / "deep", 1, torch.float32, layers=3), tied, "only one of"),
    ):
        with pytest.raises(kanna.InputError, match=said):
            kanna.merge_extract_lora(one, other, tmp_path / "lora", rank=4)
        assert not (tmp_path / "lora").exists()
        assert not (tmp_path / "lora.kanna-work").exists()


def test_what_is_interrupted_goes_on_to_the_same_bytes(bases: dict[str, Path], tmp_path: Path) -> None:
    base, tuned = bases["tied"], changed(bases["tied"], tmp_path / "tuned", ALL)
    kanna.merge_extract_lora(tuned, base, tmp_path / "whole", rank=3)
    seen = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kanna.merge_extract_lora(tuned, base, tmp_path / "lora", rank=3, progress=stop)
    assert len(seen) == 7 and not (tmp_path / "lora").exists()
    with pytest.raises(kanna.InputError, match="unfinished"):
        kanna.merge_extract_lora(tuned, base, tmp_path / "lora", rank=3)
    kanna.merge_extract_lora(tuned, base, tmp_path / "lora", rank=3, resume=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "lora" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
