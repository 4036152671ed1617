import json
from pathlib import Path

import pytest
import torch
from merge_models import weights
from transformers import (
    AutoModelForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import kanna
from kanna.errors import InputError

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}


def saved(directory: Path, kind: type[PreTrainedModel], config: PretrainedConfig) -> Path:
    kind(config).save_pretrained(directory)
    return directory


def taken(*ranges: tuple[Path, int, int]) -> dict[str, object]:
    sources = [[{"model": str(model), "layer_range": [first, end]}] for model, first, end in ranges]
    return {"merge_method": "passthrough", "slices": [{"sources": one} for one in sources]}


def without_experts(directory: Path) -> list[bool]:
    """Of each layer, by the names of tensors."""
    names, count = (
        weights(directory),
        json.loads((directory / "config.json").read_text())["num_hidden_layers"],
    )
    return [f"model.layers.{number}.mlp.up_proj.weight" in names for number in range(count)]


def test_numbers_of_layers_follow_the_layers(tmp_path: Path) -> None:
    config = Qwen2MoeConfig(**SHAPE, **EXPERTS, num_hidden_layers=4, mlp_only_layers=[1, 2])
    model = saved(tmp_path / "model", Qwen2MoeForCausalLM, config)
    assert without_experts(model) == [False, True, True, False]
    out = tmp_path / "out"
    kanna.merge(taken((model, 2, 4), (model, 0, 2), (model, 1, 2)), out)
    assert without_experts(out) == [True, False, False, True, True]
    built, said = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    kinds = [type(layer.mlp).__name__ for layer in built.model.layers]
    assert [kind.endswith("MLP") for kind in kinds] == [True, False, False, True, True]


def test_layers_without_rotation_stay_without(tmp_path: Path) -> None:
    given = {**SHAPE, "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]}
    model = saved(tmp_path / "model", SmolLM3ForCausalLM, SmolLM3Config(**given))
    out = tmp_path / "out"
    kanna.merge(taken((model, 0, 2), (model, 1, 3)), out)
    built = AutoModelForCausalLM.from_pretrained(out)
    assert [bool(layer.self_attn.use_rope) for layer in built.model.layers] == [True, False, False, True]


def test_what_depends_on_the_place_alone_is_refused(tmp_path: Path) -> None:
    config = DiffLlamaConfig(**SHAPE, num_hidden_layers=3)
    model = saved(tmp_path / "model", DiffLlamaForCausalLM, config)
    with pytest.raises(InputError, match=r"layer 1 of the merge .* layer 2 of model: self_attn.lambda_init"):
        kanna.merge(taken((model, 0, 1), (model, 2, 3)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    kanna.merge(taken((model, 0, 2)), tmp_path / "shorter")  # all others are where they were
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path / "shorter").model.layers) == 2


def test_places_of_layers_of_several_models_must_agree(tmp_path: Path) -> None:
    given = {**SHAPE, **EXPERTS, "num_hidden_layers": 2}
    pair = [
        saved(tmp_path / name, Qwen2MoeForCausalLM, Qwen2MoeConfig(**given, mlp_only_layers=[only]))
        for name, only in (("a", 0), ("b", 1))
    ]
    sources = [{"model": str(path), "layer_range": [0, 1], "parameters": {"weight": 1}} for path in pair]
    with pytest.raises(InputError, match=r"holds no tensor .*mlp"):
        kanna.merge_plan({"merge_method": "linear", "slices": [{"sources": sources}]})
    out = tmp_path / "out"
    kanna.merge(taken((pair[0], 0, 1), (pair[1], 1, 2), (pair[1], 0, 1)), out)
    assert without_experts(out) == [True, True, False]
    assert torch.isfinite(AutoModelForCausalLM.from_pretrained(out)(torch.ones(1, 4, dtype=int)).logits).all()
