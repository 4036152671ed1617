import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import recipe, save_model, weights
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.methods.merge.layers import layers_of
from kanna.methods.merge.run import merge_plan

LAYER = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of five layers and of three."""
    place = tmp_path_factory.mktemp("pair")
    return (
        save_model(place / "long", 1, torch.float32, layers=5),
        save_model(place / "short", 2, torch.float32, layers=3),
    )


def source(model: Path, first: int, end: int, **parameters: object) -> dict[str, object]:
    return {"model": str(model), "layer_range": [first, end], "parameters": parameters}


def test_layers_come_from_where_the_slices_say(pair: tuple[Path, Path], tmp_path: Path) -> None:
    long, short = pair
    slices = [
        {"sources": [source(short, 0, 1), source(long, 2, 3, weight=0.5)], "parameters": {"weight": 2.0}},
        {
            "sources": [source(long, 1, 4, weight=[0, 0.5, 1]), source(short, 0, 3, weight=[1, 0.5, 0])],
        },
    ]
    modules = {"default": {"slices": slices, "parameters": {"weight": 9.0}}}
    out = tmp_path / "out"
    result = kanna.merge({"merge_method": "linear", "modules": modules, "parameters": {"weight": 5}}, out)
    a, b, found = weights(long), weights(short), weights(out)
    expected = {
        "model.embed_tokens.weight": (2.0, 0.5),
        "model.norm.weight": (1.0, 0.0),
    }
    for name, (of_short, of_long) in expected.items():
        mean = (of_short * b[name].double() + of_long * a[name].double()) / (of_short + of_long)
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-6, atol=1e-7)
    plans = [(0, 2.0, 2, 0.5), (0, 1.0, 1, 0.0), (1, 0.5, 2, 0.5), (2, 0.0, 3, 1.0)]
    for place, (in_short, of_short, in_long, of_long) in enumerate(plans):
        parts = of_short * b[LAYER.format(in_short)].double(), of_long * a[LAYER.format(in_long)].double()
        mean = sum(parts) / (of_short + of_long)
        torch.testing.assert_close(found[LAYER.format(place)].double(), mean, rtol=1e-6, atol=1e-7)
    assert layers_of({"num_hidden_layers": 4}, found) is not None
    model, said = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert model.config.num_hidden_layers == 4 and result.passed
    recorded = lineage.read(out)
    assert recorded is not None  # layers that are left out count for what the models were
    assert [one.hash for one in recorded.steps[0].inputs] == [
        lineage.base_hash(Checkpoint.open(path)) for path in (short, long)
    ]
    assert kanna.merge_verify(out).passed
    portable = (out / "recipe.yaml").read_text()
    assert "model: short" in portable and str(short) not in portable


def test_bases_of_slices(pair: tuple[Path, Path], tmp_path: Path) -> None:
    long, short = pair
    sources = [source(long, 0, 2, weight=0.25), source(short, 0, 2, weight=0.25)]
    slices = [{"sources": sources}, {"sources": sources, "base_model": str(short)}]
    given = {"merge_method": "task_arithmetic", "slices": slices, "base_model": str(long)}
    kanna.merge(given, tmp_path / "out")
    a, b, found = weights(long), weights(short), weights(tmp_path / "out")
    for place, (base, other) in enumerate([(a, b), (a, b), (b, a), (b, a)]):
        name = LAYER.format(place % 2)
        mean = 0.75 * base[name].double() + 0.25 * other[name].double()
        torch.testing.assert_close(found[LAYER.format(place)].double(), mean, rtol=1e-6, atol=1e-7)
    norm, embedding = "model.norm.weight", "model.embed_tokens.weight"
    mean = 0.75 * b[norm].double() + 0.25 * a[norm].double()
    torch.testing.assert_close(found[norm].double(), mean)
    mean = 0.75 * a[embedding].double() + 0.25 * b[embedding].double()
    torch.testing.assert_close(found[embedding].double(), mean, rtol=1e-6, atol=1e-7)


def test_one_slice_of_all_layers_is_what_models_are(models: dict[str, Path], tmp_path: Path) -> None:
    pair, given = [models["a"], models["b"]], {"weight": [0.25, 0.75]}
    whole = {"merge_method": "linear", "models": [{"model": str(m), "parameters": given} for m in pair]}
    sliced = {"merge_method": "linear", "slices": [{"sources": [source(m, 0, 2, **given) for m in pair]}]}
    kanna.merge(whole, tmp_path / "whole")
    kanna.merge(sliced, tmp_path / "sliced")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "sliced" / name).read_bytes()


def test_what_a_configuration_says_of_each_layer(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=kinds,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "one")

    def take(*ranges: tuple[int, int]) -> dict[str, Any]:
        slices = [{"sources": [source(tmp_path / "one", *given, weight=1)]} for given in ranges]
        return {"merge_method": "linear", "slices": slices}

    kinds_differ = take((0, 2))
    kinds_differ["slices"][0]["sources"].append(source(tmp_path / "two", 2, 4, weight=1))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(
        InputError, match=r"layer 0 of the merge: layer_types is 'sliding_attention' for layer 2"
    ):
        kanna.merge_plan(kinds_differ)
    kanna.merge(take((1, 3), (0, 1), (2, 4)), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["num_hidden_layers"] == 5
    assert written["layer_types"] == [kinds[number] for number in (1, 2, 0, 2, 3)]
    model, said = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert model.config.layer_types == written["layer_types"]


def test_layers_that_are_not_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    given = {"merge_method": "linear", "slices": [{"sources": [source(pair[1], 1, 4, weight=1)]}]}
    with pytest.raises(InputError, match=r"goes beyond .*short, which has 3 layers"):
        kanna.merge(given, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    whole = {
        "merge_method": "linear",
        "models": [{"model": str(m), "parameters": {"weight": 1}} for m in pair],
    }
    with pytest.raises(InputError, match="num_hidden_layers is 3"):
        kanna.merge_plan(whole)


def test_layers_that_no_configuration_tells_of_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    listed = {}
    for name in ("a", "b"):
        shutil.copytree(models[name], tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
        listed[tmp_path / name] = {"weight": 1}
    warnings = merge_plan(recipe("linear", listed)).warnings
    told = [one for one in warnings if "tells of 1 layers, and its files hold 2 (model.layers.*)" in one]
    assert len(told) == 2 and told[0].startswith("config.json of a ")
    plain = merge_plan(recipe("linear", {models[name]: {"weight": 1} for name in ("a", "b")}))
    assert not any("tells of" in one for one in plain.warnings)
