"""Where models disagree: figures against plain loops, in the plan, in what a merge wrote, and on a page."""

import json
import math
from pathlib import Path

import pytest
import torch
from merge_models import weights
from transformers import T5Config, T5ForConditionalGeneration

import kanna
from kanna.cli.main import main


def given(models: dict[str, Path], method: str = "task_arithmetic") -> dict[str, object]:
    listed = [{"model": str(models[name]), "parameters": {"weight": 0.5}} for name in ("a", "b")]
    return {"merge_method": method, "models": listed, "base_model": str(models["base"])}


def test_figures_by_layer(models: dict[str, Path]) -> None:
    found = kanna.merge_plan(given(models), risk=True).disagreement
    assert found is not None and found["models"] == ["a", "b"] and not found["sampled"]
    base, a, b = (weights(models[name]) for name in ("base", "a", "b"))
    assert [one["layer"] for one in found["layers"]] == [0, 1, None]
    for one in found["layers"]:
        number = one["layer"]
        own = [
            name
            for name in base
            if (f"layers.{number}." in name if number is not None else "layers" not in name)
        ]
        x = torch.cat([base[name].double().flatten() for name in own])
        d = [torch.cat([side[name].double().flatten() for name in own]) - x for side in (a, b)]
        assert one["values"] == len(x)
        assert one["cosine"] == pytest.approx(float(torch.cosine_similarity(*d, dim=0)), abs=1e-6)
        assert one["norm_ratios"] == pytest.approx([float(side.norm() / x.norm()) for side in d], rel=1e-6)
        both = [(p, q) for p, q in zip(*(side.tolist() for side in d), strict=True) if p and q]
        conflicts = sum(math.copysign(1, p) != math.copysign(1, q) for p, q in both)
        assert one["conflicts"] == pytest.approx(conflicts / len(both), rel=1e-12)
        assert 0.3 < one["conflicts"] < 0.7


def test_without_differences_there_is_nothing_to_say(models: dict[str, Path], tmp_path: Path) -> None:
    linear = {key: value for key, value in given(models, "linear").items() if key != "base_model"}
    assert kanna.merge_plan(linear, risk=True).disagreement is None
    assert kanna.merge_plan(given(models)).disagreement is None  # headers alone
    document = tmp_path / "two.yml"
    one = json.dumps({**linear, "name": "first"})
    document.write_text(f"{one}\n---\n{json.dumps({**given(models), 'base_model': 'first'})}\n")
    with pytest.raises(kanna.InputError, match="first is a document whose result is not there yet"):
        kanna.merge_plan(document, risk=True)
    assert kanna.merge(document, tmp_path / "out").passed
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["disagreement"]["models"] == ["a", "b"]


def test_pages_show_them(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kanna.merge(given(models), tmp_path / "out")
    file = tmp_path / "recipe.yml"
    file.write_text(json.dumps(given(models)))
    assert main(["merge", "plan", str(file), "--risk"]) == 0
    said = capsys.readouterr().out
    assert "sign conflicts" in said and "outside of layers" in said
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    page, text = (tmp_path / "page.html").read_text(), (tmp_path / "page.md").read_text()
    figures = json.loads((tmp_path / "out" / "merge.json").read_text())["disagreement"]["all"]
    for shown in (f"{figures['cosine']:.3f}", f"{100 * figures['conflicts']:.1f} %", "Where models disagree"):
        assert shown in page and shown in text


def test_layers_of_encoder_and_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by itself; what is over all is that of all together."""
    places = {}
    for seed, name in enumerate(("base", "a", "b")):
        config = T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=2
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            T5ForConditionalGeneration(config).save_pretrained(tmp_path / name)
        places[name] = tmp_path / name
    found = kanna.merge_plan(given(places), risk=True).disagreement
    assert found is not None
    told = [one["layer"] for one in found["layers"]]
    assert told == ["encoder 0", "encoder 1", "encoder 2", "decoder 0", "decoder 1", None]
    assert found["all"]["values"] == sum(one["values"] for one in found["layers"])
    base, a, b = (weights(places[name]) for name in ("base", "a", "b"))
    x = torch.cat([value.double().flatten() for value in base.values()])
    d = [torch.cat([side[name].double().flatten() for name in base]) - x for side in (a, b)]
    assert found["all"]["cosine"] == pytest.approx(float(torch.cosine_similarity(*d, dim=0)), abs=1e-6)
    file = tmp_path / "recipe.yml"
    file.write_text(json.dumps(given(places)))
    assert main(["merge", "plan", str(file), "--risk"]) == 0
    assert "decoder 1" in capsys.readouterr().out
