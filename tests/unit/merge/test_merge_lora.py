"""Adapters merged into an adapter: what the models themselves would become, and never more than that."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from merge_models import save_model, weights
from safetensors.torch import load_file
from test_merge_adapters import by_peft, save_adapter

import kanna
from kanna.cli.main import main


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("loras")
    base = save_model(room / "base", 1, torch.float32)
    save_adapter(room / "a", base, 1)
    save_adapter(room / "b", base, 2, target_modules=["q_proj", "up_proj"], r=3)
    save_adapter(room / "h", base, 3, modules_to_save=["lm_head"])
    save_adapter(room / "n", base, 4, modules_to_save=["norm", "lm_head"])
    save_adapter(room / "e", base, 5, modules_to_save=["embed_tokens"])
    save_adapter(room / "t", base, 6, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    save_adapter(room / "f", base, 8, target_modules=["embed_tokens", "q_proj"])
    save_model(room / "other", 7, torch.float32)
    return room


def recipe(method: str, room: Path, names: str = "ab", **more: Any) -> dict[str, Any]:
    listed = [
        {"model": f"{room / 'base'}+{room / name}", "parameters": {"weight": weight}}
        for name, weight in zip(names, (0.7, 0.4), strict=False)
    ]
    base = {} if method == "linear" else {"base_model": str(room / "base")}
    return {"merge_method": method, "models": listed, **base, **more}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("linear", {}),
        ("task_arithmetic", {"parameters": {"lambda": 0.5}}),
        ("model_stock", {}),
        ("multislerp", {}),
    ],
)
def test_the_adapter_is_what_the_models_become(
    method: str, more: dict[str, Any], room: Path, tmp_path: Path
) -> None:
    given = recipe(method, room, **more)
    if method == "model_stock":
        given["models"] = [{"model": one["model"]} for one in given["models"]]
    kanna.merge({**given, "out_dtype": "float32"}, tmp_path / "whole")
    done = kanna.merge_lora(given, tmp_path / "lora")
    expected, found = weights(tmp_path / "whole"), by_peft(room / "base", tmp_path / "lora")
    start, changed = weights(room / "base"), set()
    for name, values in expected.items():
        assert float((found[name] - values).abs().max()) < 2e-6 * float(values.abs().max())
        if not torch.equal(values, start[name]):
            changed.add(name.removesuffix(".weight"))
    assert set(done.ranks) == changed
    if method != "model_stock":  # what one adapter alone has is at a right angle to nothing, and goes
        assert done.ranks["model.layers.0.self_attn.q_proj"] == 7
        assert len(changed) == 6 and done.ranks["model.layers.1.mlp.up_proj"] == 3
    assert set(done.lost.values()) == {0.0}


# Adapters -> modules that are saved whole. The base's head is its embedding.
SAVED = {
    "an": ["layers.0.input_layernorm", "lm_head"],
    "hn": ["layers.1.post_attention_layernorm", "lm_head"],
    "ah": ["lm_head"],
    "fh": ["lm_head"],
    "ae": ["embed_tokens"],
    "ef": ["lm_head", "embed_tokens"],
    "tb": ["lm_head", "embed_tokens"],
}


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("names", SAVED)
def test_what_adapters_save_whole_is_merged_whole(
    names: str, method: str, room: Path, tmp_path: Path
) -> None:
    given = recipe(method, room, names)
    for one in given["models"]:
        if method == "ties":
            one["parameters"]["density"] = 0.6
    kanna.merge({**given, "out_dtype": "float32"}, tmp_path / "whole")
    done = kanna.merge_lora(given, tmp_path / "lora")
    for module in SAVED[names]:
        assert any(saved.endswith(module) for saved in done.saved)
    expected, found = weights(tmp_path / "whole"), by_peft(room / "base", tmp_path / "lora")
    saved = {f"{module}.weight" for module in done.saved}
    compared = expected.keys() if method == "linear" else expected.keys() & saved
    for name in compared:
        values = expected[name]
        assert float((found[name] - values).abs().max()) < 2e-6 * float(values.abs().max())
    head = expected.get("lm_head.weight", expected["model.embed_tokens.weight"])
    assert float((found["lm_head.weight"] - head).abs().max()) < 2e-6 * float(head.abs().max())


def test_fewer_ranks_lose_what_is_said(room: Path, tmp_path: Path) -> None:
    done = kanna.merge_lora(recipe("task_arithmetic", room), tmp_path / "lora", rank=2)
    assert set(done.ranks.values()) == {2}
    name = "model.layers.0.self_attn.q_proj"
    deltas = [by_peft(room / "base", room / one)[f"{name}.weight"].double() for one in "ab"]
    start = weights(room / "base")[f"{name}.weight"].double()
    values = torch.linalg.svdvals(0.7 * (deltas[0] - start) + 0.4 * (deltas[1] - start)).square()
    assert done.lost[name] == pytest.approx(float(values[2:].sum() / values.sum()), rel=1e-4)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs"])
def test_methods_by_entries_stay_in_the_span(method: str, room: Path, tmp_path: Path) -> None:
    given = recipe(method, room)
    for one in given["models"]:
        one["parameters"]["density"] = 0.5
    done = kanna.merge_lora(given, tmp_path / "lora", seed=3)
    name = "model.layers.0.self_attn.q_proj"
    assert 1 <= done.ranks[name] <= 7
    file = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert all(bool(values.isfinite().all()) for values in file.values())
    rows = torch.cat([load_file(room / one / "adapter_model.safetensors")[
        f"base_model.model.{name}.lora_B.weight"] for one in "ab"], 1).double()  # fmt: skip
    written = file[f"base_model.model.{name}.lora_B.weight"].double()
    beyond = written - rows @ torch.linalg.lstsq(rows, written).solution
    assert float(beyond.abs().max()) < 1e-5 * float(written.abs().max())
    again = kanna.merge_lora(given, tmp_path / "again", seed=3)
    assert again.ranks == done.ranks
    same = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(values, same[key]) for key, values in file.items())


def test_ties_of_cores_keeps_what_one_adapter_says(room: Path, tmp_path: Path) -> None:
    """With one adapter, all of it: the sign is its own, and nothing is pruned."""
    given = recipe("ties", room, "a")
    kanna.merge_lora(given, tmp_path / "lora")
    expected, found = by_peft(room / "base", room / "a"), by_peft(room / "base", tmp_path / "lora")
    for name, values in expected.items():
        assert float((found[name] - values).abs().max()) < 2e-6 * float(values.abs().max())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": {"normalize": False}}, "sum to 1.1, not to 1"),
        ({"merge_method": "karcher"}, "karcher without a base makes no adapter"),
        ({"models": ["base"]}, "is a model without an adapter"),
        ({"models": ["other+a", "base+b"]}, "not all adapters are of one base|was trained on"),
        ({"rank": 0}, "a rank of 0"),
    ],
)
def test_what_makes_no_adapter(change: dict[str, Any], said: str, room: Path, tmp_path: Path) -> None:
    change = dict(change)
    rank = change.pop("rank", None)
    given = recipe("linear", room)
    if names := change.pop("models", None):
        listed = ["+".join(str(room / part) for part in name.split("+")) for name in names]
        given["models"] = [{"model": one, "parameters": {"weight": 1}} for one in listed]
    with pytest.raises(kanna.InputError, match=said):
        kanna.merge_lora({**given, **change}, tmp_path / "lora", rank=rank)
    assert not (tmp_path / "lora").exists()


def test_the_verb(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(recipe("task_arithmetic", room)))
    words = ["merge", "run", str(file), "--out", str(tmp_path / "lora")]
    assert main([*words, "--as-lora", "--rank", "2"]) == 0
    assert "layers of rank 2 to 2" in capsys.readouterr().out
    assert main([*words, "--rank", "2"]) == 2
    assert main([*words, "--as-lora", "--resume"]) == 2
    assert main([*words, "--as-lora"]) == 2  # it exists
    assert main([*words, "--as-lora", "--force"]) == 0
