"""One threshold for all tensors of a model or of a layer, against sorting their differences at once."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import hashes, in_child
from merge_models import recipe, save_model, weights
from torch import Tensor

import kanna
from kanna.errors import InputError
from kanna.methods.merge.journal import Journal, Note
from kanna.methods.merge.lora import merge_lora
from kanna.methods.merge.plan import BLOCK
from kanna.methods.merge.run import merge, merge_plan
from kanna.methods.merge.shards import written_shards
from kanna.methods.merge.tuning.held import tensors_of

Models = dict[str, Path]
WEIGHTS = {"a": 0.5, "b": 0.75}
DENSITIES = {"a": 0.3, "b": 0.45}


def given(models: Models, method: str, gamma: float | None = None, **parameters: object) -> dict[str, Any]:
    own = {
        models[name]: {
            "weight": WEIGHTS[name],
            "density": DENSITIES[name],
            **({} if gamma is None else {"gamma": gamma}),
        }
        for name in ("a", "b")
    }
    top = {"scope": "model", "lambda": 0.5, **parameters}
    return recipe(method, own, base_model=str(models["base"]), parameters=top, dtype="float32")


def kept(values: Tensor, density: float, gamma: float) -> Tensor:
    """By one sort of all differences of a model; equal ones stay in their order."""
    count = max(1, int(density * len(values)))
    top = min(int(gamma * len(values)), len(values) - count)
    order = torch.sort(values.abs(), descending=True, stable=True).indices
    mask = torch.zeros(len(values))
    mask[order[top : top + count]] = 1
    return values * mask


def expected(models: Models, order: list[str], method: str, gamma: float) -> Tensor:
    """All tensors behind one another."""

    def flat(name: str) -> Tensor:
        found = weights(models[name])
        return torch.cat([found[one].float().flatten() for one in order])

    base = flat("base")
    parts = {
        name: kept(flat(name) - base, DENSITIES[name], gamma).double() * weight
        for name, weight in WEIGHTS.items()
    }
    total = sum(parts.values(), start=torch.zeros(len(base), dtype=torch.float64))
    if method == "breadcrumbs":
        return base + 0.5 * total
    sign = torch.where(total >= 0, 1.0, -1.0)
    agree = {name: part * sign > 0 for name, part in parts.items()}
    change = sum((part * agree[name] for name, part in parts.items()), start=torch.zeros_like(total))
    if method == "ties":
        divisor = sum(
            (agree[name] * weight for name, weight in WEIGHTS.items()), start=torch.zeros_like(total)
        )
        change = change / torch.where(divisor > 0, divisor, 1.0)
    return base + 0.5 * change


@pytest.mark.parametrize(
    ("method", "gamma"), [("ties", None), ("breadcrumbs", 0.05), ("breadcrumbs_ties", 0.2)]
)
@pytest.mark.parametrize("wide", [False, True])
def test_the_largest_of_the_whole_model_stay(
    method: str, gamma: float | None, wide: bool, models: Models, tmp_path: Path
) -> None:
    """The models differ in nine sizes, so most entries at a threshold are equal, over all tensors."""
    if wide:
        models = {**models, "b": save_model(tmp_path / "b", 2, torch.float64, models["base"])}
    result = kanna.merge(given(models, method, gamma), tmp_path / "out")
    order = [tensor.spec.name for tensor in result.plan.tensors]
    written = weights(tmp_path / "out")
    found = torch.cat([written[name].flatten() for name in order])
    wanted = expected(models, order, method, gamma or 0.0)
    assert float((found.double() - wanted).abs().max()) < 1e-6
    count = len(found)
    sizes = [int(density * count) for density in DENSITIES.values()]
    assert result.figures["kept_share"] == sum(sizes) / (2 * count)
    by_tensor = kanna.merge(given(models, method, gamma, scope="tensor"), tmp_path / "by_tensor")
    assert hashes(by_tensor.out)["model.safetensors"] != hashes(result.out)["model.safetensors"]
    for told in (result.plan.to_dict(), json.loads((result.out / "merge.json").read_text())):
        assert {group["parameters"]["scope"] for group in told["groups"]} == {"model"}
    assert all("scope" not in group["parameters"] for group in by_tensor.plan.to_dict()["groups"])


PLACES = ("embed_tokens", "layers.0.", "layers.1.", "model.norm")


@pytest.mark.parametrize(
    ("method", "gamma"), [("ties", None), ("breadcrumbs", 0.05), ("breadcrumbs_ties", 0.2)]
)
def test_the_largest_of_every_layer_stay(
    method: str, gamma: float | None, models: Models, tmp_path: Path
) -> None:
    """Each layer, and what lies before and behind them, as if it were a model of its own."""
    result = kanna.merge(given(models, method, gamma, scope="layer"), tmp_path / "out")
    written = weights(tmp_path / "out")
    names = [tensor.spec.name for tensor in result.plan.tensors]
    assert sum(place in name for place in PLACES for name in names) == len(names)
    sizes = []
    for place in PLACES:
        inside = [name for name in names if place in name]
        found = torch.cat([written[name].flatten() for name in inside])
        wanted = expected(models, inside, method, gamma or 0.0)
        assert float((found.double() - wanted).abs().max()) < 1e-6, place
        sizes += [max(1, int(density * len(found))) for density in DENSITIES.values()]
    count = sum(value.numel() for value in written.values())
    assert result.figures["kept_share"] == sum(sizes) / (2 * count)
    told = json.loads((result.out / "merge.json").read_text())
    assert {group["parameters"]["scope"] for group in told["groups"]} == {"layer"}
    held = tensors_of(merge_plan(given(models, method, gamma, scope="layer")), [names[5]])
    assert list(held) == [names[5]] and torch.equal(held[names[5]], written[names[5]])


def test_layers_may_keep_different_shares(models: Models, tmp_path: Path) -> None:
    """But not the tensors of one layer."""
    top: dict[str, Any] = {"base_model": str(models["base"]), "parameters": {"scope": "layer"}}
    own = {models["a"]: {"weight": 1, "density": [{"filter": "layers.0.", "value": 0.6}, {"value": 0.3}]}}
    kanna.merge(recipe("ties", own, **top), tmp_path / "out")
    base, found = weights(models["base"]), weights(tmp_path / "out")
    for place, share in zip(PLACES, (0.3, 0.6, 0.3, 0.3), strict=True):
        moved = torch.cat([(value != base[name]).flatten() for name, value in found.items() if place in name])
        assert int(moved.sum()) == max(1, int(share * len(moved)))
    own = {models["a"]: {"weight": 1, "density": [{"filter": "q_proj", "value": 0.6}, {"value": 0.3}]}}
    with pytest.raises(InputError, match=r"one threshold holds for both with scope: layer"):
        merge_plan(recipe("ties", own, **top))


def test_chunks_and_shards_of_any_size_give_the_same_bytes(models: Models, tmp_path: Path) -> None:
    plan = merge_plan(given(models, "breadcrumbs", 0.05))
    found = []
    for chunk, size in ((BLOCK, 40_000), (4 * BLOCK, 40_000)):
        work = tmp_path / str(chunk)
        work.mkdir()
        shards = written_shards(dataclasses.replace(plan, chunk=chunk), work, lambda *_: None, size)
        found.append((list(shards.files.values()), shards.figures))
    assert found[0] == found[1]


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_killed_merge_goes_on_with_its_thresholds(scope: str, models: Models, tmp_path: Path) -> None:
    recipe_, whole, out = (
        given(models, "ties", scope=scope),
        tmp_path / "whole" / "out",
        tmp_path / "killed" / "out",
    )
    merge(recipe_, whole)

    def killed() -> None:
        original = Journal.add

        def add(self: Journal, note: Note) -> None:
            original(self, note)
            os.kill(os.getpid(), signal.SIGKILL)

        Journal.add = add  # type: ignore[method-assign]
        merge(recipe_, out)

    assert in_child(killed) == -signal.SIGKILL
    thresholds = out.with_name("out.kanna-work") / "merge" / "thresholds.json"
    there = thresholds.stat().st_mtime_ns

    def resumed() -> None:
        stages = []
        merge(recipe_, out, resume=True, progress=lambda stage, *_: stages.append(stage))
        assert not any(stage.startswith("thresholds") for stage in stages)

    assert there and in_child(resumed) == 0
    assert hashes(out) == hashes(whole)


def test_merges_in_memory_have_the_same_thresholds(models: Models, tmp_path: Path) -> None:
    recipe_ = given(models, "ties")
    kanna.merge(recipe_, tmp_path / "out")
    held = tensors_of(merge_plan(recipe_))
    for name, values in weights(tmp_path / "out").items():
        assert torch.equal(values, held[name])


def test_densities_of_all_and_of_nothing(models: Models, tmp_path: Path) -> None:
    own = {models["a"]: {"weight": 1, "density": 1}, models["b"]: {"weight": 1, "density": 0}}
    top = {"base_model": str(models["base"]), "parameters": {"scope": "model"}, "dtype": "float32"}
    kanna.merge(recipe("ties", own, **top), tmp_path / "out")
    a = weights(models["a"])
    for name, values in weights(tmp_path / "out").items():
        assert float((values - a[name].float()).abs().max()) < 1e-6


def test_magnitudes_that_sum_to_what_they_did_before(models: Models, tmp_path: Path) -> None:
    """Those of each tensor, whatever the whole model leaves of it."""
    own = {models["a"]: {"weight": 1, "density": 0.3}}
    top: dict[str, Any] = {"base_model": str(models["base"]), "dtype": "float32"}
    kanna.merge(
        recipe("breadcrumbs", own, parameters={"scope": "model", "rescale": "l1"}, **top), tmp_path / "out"
    )
    base, a, found = (weights(place) for place in (models["base"], models["a"], tmp_path / "out"))
    moved = []
    for name, values in found.items():
        left, before = values - base[name].float(), a[name].float() - base[name].float()
        moved.append(float((left != 0).float().mean()))
        assert float(left.abs().sum()) == pytest.approx(float(before.abs().sum()), rel=1e-4), name
    assert min(moved) < max(moved)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"scope": "modl"}, "did you mean model?"),
        ({"scope": "laier"}, "scope is tensor or layer or model, for all tensors, found 'laier'"),
        ({"scope": True}, "found True"),
        ({"scope": ["model", "tensor"]}, "found ['model', 'tensor']"),
        ({"scope": [{"filter": "mlp", "value": "model"}]}, "for all tensors"),
        ({"scpe": "model"}, "did you mean scope?"),
    ],
)
def test_scopes_that_are_none(
    parameters: dict[str, object], said: str, models: Models, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        merge_plan(given(models, "ties", **parameters))
    assert said in str(caught.value)


def test_a_threshold_for_all_has_one_density_and_one_scope(models: Models) -> None:
    with pytest.raises(InputError, match=r"the density of .*a is 0.3 for .* and 0.6 for "):
        own = {models["a"]: {"weight": 1, "density": [{"filter": "norm", "value": 0.6}, {"value": 0.3}]}}
        top: dict[str, Any] = {"base_model": str(models["base"]), "parameters": {"scope": "model"}}
        merge_plan(recipe("ties", own, **top))
    sources = [
        {"model": str(models[name]), "layer_range": [layer, layer + 1], "parameters": {"weight": 1}}
        for layer in (0, 1)
        for name in ("base", "a")
    ]
    slices = [{"sources": sources[:2], "parameters": {"scope": "model"}}, {"sources": sources[2:]}]
    with pytest.raises(InputError, match="scope is model for some tensors and tensor for others"):
        merge_plan({"merge_method": "ties", "base_model": str(models["base"]), "slices": slices})
    linear = recipe("linear", {models["a"]: {"weight": 1}}, parameters={"scope": "model"})
    assert any("scope has no effect under linear" in note for note in merge_plan(linear).warnings)


def test_coordinates_of_adapters_have_no_common_threshold(models: Models, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no scope: model"):
        merge_lora(given(models, "ties"), tmp_path / "out")
