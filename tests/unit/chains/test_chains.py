"""Chains of steps: equal to the verbs by hand, killed anywhere and resumed, with a complete lineage."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from killing import hashes, in_child, killed_and_resumed, names_taken
from safetensors.torch import load_file

import kanna
from kanna.errors import InputError

Base = Callable[[str], Path]
FAMILIES = ("llama", "gpt2", "gpt_neox", "bert_mlm")
LOW: dict[str, Any] = {"lowrank": {**tiny.SETTINGS, "keep": 0.7}}
LOWER: dict[str, Any] = {"lowrank": {**tiny.SETTINGS, "keep": 0.6, "method": "anchored", "storage": "pivot"}}
EDIT: dict[str, Any] = {"laser": {"edits": ["mlp:1:k=3"], "keep_originals": True}}
DENSE: dict[str, Any] = {"export": {"format": "dense"}}
CHAINS = {
    "laser-lowrank": (EDIT, LOW),
    "lowrank-lowrank": (LOW, LOWER),
    "lowrank-laser-export": (LOW, EDIT, DENSE),
}
KILLED = -9
POINTS = 20


def by_hand(base: Path, steps: tuple[dict[str, Any], ...], text: Path, root: Path, cache: Path) -> Path:
    """The same with one verb after the other."""
    model = base
    for number, step in enumerate(steps, 1):
        [(name, settings)] = step.items()
        out = root / f"after-{number}"
        if name == "lowrank":
            config = kanna.LowRankConfig(**settings)
            assert kanna.lowrank(model, out, config, calibration=text, cache=cache).passed
        elif name == "laser":
            assert kanna.laser_apply(model, out, kanna.LaserConfig(**settings)).passed
        else:
            assert kanna.export_dense(model, out).passed
        model = out
    return model


def run(base: Path, chain: str, text: Path, out: Path, cache: Path, **more: Any) -> Any:
    recipe = {"model": str(base), "calibration": str(text), "steps": list(CHAINS[chain])}
    return kanna.run(recipe, out=out, cache=cache, **more)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_is_its_verbs_one_after_the_other(
    chain: str, family: str, bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    base, out = bases(family), tmp_path / "chain" / "out"
    result = run(base, chain, text, out, cache)
    assert result.passed and all(step.verdict.passed for step in result.steps)
    last = by_hand(base, CHAINS[chain], text, tmp_path, cache)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (last / name).read_bytes(), name
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.run.json"]
    model, _ = kanna.load(out)
    with torch.no_grad():
        assert model(torch.arange(3, 15)[None]).logits.isfinite().all()
    lineages = [json.loads((path / "kanna.json").read_text()) for path in (out, last)]
    names = [next(iter(step)) for step in CHAINS[chain]]
    for recorded in lineages:
        assert [step["method"] for step in recorded["steps"]] == names
        assert recorded["base"]["name"] == family
    for mine, theirs in zip(*(recorded["steps"] for recorded in lineages), strict=True):
        assert (mine["config"], mine["data_hash"]) == (theirs["config"], theirs["data_hash"])
        sizes = ("model_bytes_before", "model_bytes_after", "verdict")
        assert [mine["scores"][key] for key in sizes] == [theirs["scores"][key] for key in sizes]
    card = (out / "README.md").read_text()
    assert f"base_model: {family}" in card and "bytes kept of the original base" in card


@pytest.mark.parametrize("chain", CHAINS)
def test_killed_anywhere_and_resumed_gives_the_same_bytes(
    chain: str, bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    draw = random.Random(chain)
    for family in FAMILIES:
        base, reference = bases(family), tmp_path / family / "reference" / "out"
        # The first run fills the cache, and so takes more names than those that follow.
        in_child(lambda b=base, f=family: run(b, chain, text, tmp_path / f / "first" / "out", cache))
        points = names_taken(lambda b=base, o=reference: run(b, chain, text, o, cache), tmp_path / "count")
        for _ in range(POINTS // len(FAMILIES)):
            point, late = draw.randint(2, points), draw.random() < 0.5
            out = tmp_path / family / f"{point}-{late}" / "out"
            if out.exists():
                continue
            status, resumed = killed_and_resumed(
                lambda resume, b=base, o=out: run(b, chain, text, o, cache, resume=resume), point, late
            )
            assert (status, resumed) == (KILLED, 0), (family, point, late, points)
            assert hashes(out) == hashes(reference), (family, point, late)
            assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.run.json"]


def test_a_killed_chain_goes_on_at_the_step_it_was_in(
    bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "reduce":
            raise Stop

    out = tmp_path / "out"
    with pytest.raises(Stop):
        run(bases("llama"), "lowrank-laser-export", text, out, cache, progress=stop)
    assert sorted(p.name for p in (tmp_path / "out.kanna-work").iterdir() if p.is_dir()) == ["model-1"]
    stages: list[str] = []
    result = run(
        bases("llama"), "lowrank-laser-export", text, out, cache, resume=True,
        progress=lambda stage, *_: stages.append(stage),
    )  # fmt: skip
    assert result.passed and "replace" not in stages and "reduce" in stages
    assert [step.method for step in result.steps] == ["lowrank", "laser", "export"]
    assert result.steps[0].figures["matrices_replaced"] > 0  # as its lineage tells


def test_the_first_step_is_not_lost(bases: Base, tmp_path: Path) -> None:
    """As it was seen: laser apply base --out L, lowrank L --out LL; LL said base "L", steps ["lowrank"]."""
    edited, small = tmp_path / "L", tmp_path / "LL"
    kanna.laser_apply(bases("llama"), edited, kanna.LaserConfig(edits=("mlp_out:1:0.5",)))
    kanna.lowrank(edited, small, kanna.LowRankConfig(keep=0.7, method="plain", align=1))
    recorded = json.loads((small / "kanna.json").read_text())
    assert recorded["base"]["name"] == "llama"
    assert [step["method"] for step in recorded["steps"]] == ["laser", "lowrank"]
    assert "matrices_changed" in recorded["steps"][0]["scores"]
    assert "keep_selected" in recorded["steps"][1]["scores"]


def test_keep_is_a_share_of_what_is_stored_now(bases: Base, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    config = kanna.LowRankConfig(keep=0.6, method="plain", align=1)
    first = kanna.lowrank(bases("llama"), once, config).figures
    second = kanna.lowrank(once, twice, config).figures
    assert 0.55 < first["keep_selected"] <= 0.6 and "keep_selected_of_dense" not in first
    assert 0.5 < second["keep_selected"] <= 0.6
    product = first["keep_selected"] * second["keep_selected"]
    assert second["keep_selected_of_dense"] == pytest.approx(product)
    before = (bases("llama") / "model.safetensors").stat().st_size
    ratio = (twice / "model.safetensors").stat().st_size / before
    assert second["keep_original_bytes"] == pytest.approx(ratio, abs=0.2)
    assert second["keep_original_bytes"] < second["keep_model_bytes"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_rank_is_the_best_of_what_the_factors_make(
    family: str, bases: Base, tmp_path: Path
) -> None:
    """Against a decomposition in float64 of the product of the factors that are there."""
    once, twice, dense_once, dense_twice = (tmp_path / name for name in ("1", "2", "d1", "d2"))
    config = kanna.LowRankConfig(rank=5, method="plain", align=1, select="mlp")
    kanna.lowrank(bases(family), once, config)
    kanna.lowrank(once, twice, kanna.LowRankConfig(rank=2, method="plain", align=1, select="mlp"))
    for source, out in ((once, dense_once), (twice, dense_twice)):
        kanna.export_dense(source, out)
    before, after = (load_file(path / "model.safetensors") for path in (dense_once, dense_twice))
    _, found = tiny.opened(bases(family))
    for matrix in (m for m in found.compressible if m.group == "mlp"):
        name = next(name for name in before if matrix.tensor.endswith(name))
        weight = before[name].double()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        best = (left[:, :2] * values[:2]) @ right[:2]
        torch.testing.assert_close(after[name].double(), best, rtol=1e-4, atol=1e-5)


def test_edits_of_factors_stay_factors(bases: Base, tmp_path: Path) -> None:
    once, edited = tmp_path / "once", tmp_path / "edited"
    kanna.lowrank(bases("gpt2"), once, kanna.LowRankConfig(rank=5, method="plain", align=1))
    result = kanna.laser_apply(once, edited, kanna.LaserConfig(edits=("q:0:k=2", "fc_in:1:k=3")))
    assert result.passed and result.figures["model_bytes_after"] < result.figures["model_bytes_before"]
    forms = json.loads((edited / "config.json").read_text())["quantization_config"]["forms"]
    fused = forms["transformer.h.0.attn.c_attn"]["parts"]
    assert [part["form"]["rank"] for part in fused] == [2, 5, 5]
    assert forms["transformer.h.1.mlp.c_fc"] == {"form": "low_rank", "rank": 3}
    for mode in ("bottom", "noise"):
        with pytest.raises(InputError, match="only the first components"):
            kanna.laser_apply(once, tmp_path / "no", kanna.LaserConfig(edits=("q:0:k=2",), mode=mode))


def test_restoring_an_edit_of_factors_gives_the_factors_back(bases: Base, tmp_path: Path) -> None:
    once, edited, back = (tmp_path / name for name in ("once", "edited", "back"))
    kanna.lowrank(bases("gpt2"), once, kanna.LowRankConfig(keep=0.7, method="plain", align=1))
    config = kanna.LaserConfig(edits=("q:0:k=2", "fc_in:1:k=2"), keep_originals=True)
    kanna.laser_apply(once, edited, config)
    once.rename(tmp_path / "hidden")
    kanna.laser_restore(edited, back)
    expected = load_file(tmp_path / "hidden" / "model.safetensors")
    found = load_file(back / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)
    configs = [json.loads((p / "config.json").read_text()) for p in (tmp_path / "hidden", back)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


@pytest.mark.parametrize("spelling", ["itself", "inside", "parent", "dots", "link"])
def test_an_output_is_never_an_input(spelling: str, tmp_path: Path) -> None:
    base = tiny.family("llama", tmp_path / "models" / "base")
    (tmp_path / "link").symlink_to(base)
    out = {
        "itself": base,
        "inside": base / "small",
        "parent": base.parent,
        "dots": base.parent / "other" / ".." / "base",
        "link": tmp_path / "link",
    }[spelling]
    before = hashes(base)
    with pytest.raises(InputError, match="never touched"):
        kanna.lowrank(base, out, kanna.LowRankConfig(keep=0.7, method="plain", align=1), force=True)
    assert hashes(base) == before
