"""The step from rows to a directory: sizes, forms, refusals, kills."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoder_decoders
import pytest
import tiny
import torch
from killing import hashes, in_child, killed_and_resumed, names_taken
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import kanna
from kanna.errors import InputError
from kanna.methods.basel import execute
from kanna.methods.basel.config import BaselConfig
from kanna.runs.runner import RunResult
from kanna.runs.source import Source

Base = Callable[[str], Path]
FAMILIES = ("llama", "gpt2", "gpt_neox", "qwen2", "phi3")


def basel(model: Path, out: Path | None, rows: Path, **given: Any) -> RunResult:
    own = {key: given.pop(key) for key in ("resume", "dry_run", "criteria", "force") if key in given}
    settings = {"data": rows, "keep": 0.5, "rows": 8, "prune_events": 3, **given}
    if "preset" not in given:
        settings = {"epochs": (1, 2, 1), **settings}
    return kanna.basel(model, out, BaselConfig(**settings), **own)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_was_counted(family: str, bases: Base, rows: Path, tmp_path: Path) -> None:
    base, out = bases(family), tmp_path / "out"
    result = basel(base, out, rows)
    assert result.passed and result.figures["events"] == 3
    plan, ranks = result.plan, result.figures["ranks"]
    count = sum(
        size.dense if name in result.figures["dense"] else ranks[name] * (size.m + size.n)
        for name, size in plan.sizes.items()
    )
    assert result.figures["keep_selected"] == pytest.approx(count / plan.parameters)
    assert count == pytest.approx(0.5 * plan.parameters, rel=0.02)
    before, after = kanna.inspect(base), kanna.inspect(out)
    written = Source.open(out)
    for matrix in written.inventory.matrices:
        if matrix.name in plan.sizes:
            assert getattr(written.form(matrix), "rank", None) == ranks.get(matrix.name)
    assert after.bytes < before.bytes
    model, _ = kanna.load(out)
    kanna.export_dense(out, tmp_path / "dense")
    merged, _ = kanna.load(tmp_path / "dense")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        mine, theirs = model(ids).logits, merged(ids).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    untouched = {name for name in load_file(base / "model.safetensors") if "norm" in name or "ln_" in name}
    old, new = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert untouched and all(torch.equal(old[name], new[name]) for name in untouched)


def test_weights_are_learnt_and_factors_after_them(bases: Base, rows: Path, tmp_path: Path) -> None:
    result = basel(bases("llama"), tmp_path / "out", rows, epochs=(2, 2, 12), keep=0.6, factor_rate=0.01)
    lines = "\n".join(result.last.description.lines)
    assert "weights of bases: 20 steps" in lines and "factors: 60 steps" in lines
    recorded = json.loads((tmp_path / "out" / "kanna.json").read_text())["steps"]
    assert [step["method"] for step in recorded] == ["basel"]
    first, last = map(float, re.findall(r"factors: .* loss ([\d.]+) to ([\d.]+)", lines)[0])
    assert recorded[0]["data_hash"] and last < 0.95 * first
    assert recorded[0]["scores"]["training_loss"] == pytest.approx(last, abs=1e-3)


@pytest.mark.parametrize("importance", ["fisher", "taylor", "sigma", "bsi"])
def test_every_importance_meets_the_budget(importance: str, bases: Base, rows: Path, tmp_path: Path) -> None:
    result = basel(bases("llama"), tmp_path / "out", rows, importance=importance, epochs=(1, 1, 0), keep=0.4)
    assert result.passed and result.figures["keep_selected"] == pytest.approx(0.4, rel=0.06)
    told = json.loads((tmp_path / "out" / "kanna-basel.json").read_text())["notes"]
    assert len(told) == (importance == "bsi") and ("negative_curvatures" in result.figures) == bool(told)
    if told:
        assert told[0] in "\n".join(result.last.description.lines) and told[0].startswith("curvature: ")


@pytest.mark.parametrize(
    ("keep", "first", "second"),
    [
        (0.5, 1.130, 1.414),
        (0.3, 1.248, 1.826),
        (0.2, 1.357, 2.236),
        (0.1, 1.585, 3.162),
        (0.05, 1.879, 4.472),
    ],
)
def test_rates_of_the_papers_preset_rise_with_what_goes(
    keep: float, first: float, second: float, rows: Path
) -> None:
    """The mean of sqrt(1 / kept) over one epoch of all bases and two of decay, and its end; of none else."""
    paper = BaselConfig(data=rows, keep_sigma=keep, preset="paper")
    assert (round(paper.part_1_factor, 3), round(paper.part_2_factor, 3)) == (first, second)
    decay = [keep ** (i / 100_000) for i in range(100_000)]
    mean = (1 + 2 * sum(share**-0.5 for share in decay) / len(decay)) / 3
    assert paper.part_1_factor == pytest.approx(mean, rel=1e-4)
    ours = BaselConfig(data=rows, keep=keep)
    assert (ours.part_1_factor, ours.part_2_factor) == (1.0, 1.0)


def test_the_papers_preset_trains_what_its_code_does(bases: Base, rows: Path, tmp_path: Path) -> None:
    config = BaselConfig(data=rows, keep_sigma=0.5, preset="paper")
    assert (config.importance, config.learn, config.beside, config.prune_events) == (
        "sigma",
        "roots",
        True,
        100,
    )
    base, out = bases("llama"), tmp_path / "out"
    given = {"preset": "paper", "prune_events": 3, "extra_rank": 1, "rate": 1e-3, "factor_rate": 1e-3}
    result = basel(base, out, rows, keep=None, keep_sigma=0.5, **given)
    assert result.passed
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    norms = [name for name in before if "norm" in name or "embed" in name]
    assert norms and all(not torch.equal(before[name], after[name]) for name in norms)


@pytest.mark.parametrize("twice", [False, True])
def test_tied_embeddings_trained_beside_are_written_under_each_name_of_the_files(
    twice: bool, bases: Base, rows: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(bases("gpt2"), tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    embedding, head = "transformer.wte.weight", "lm_head.weight"
    assert head not in stored
    if twice:
        save_file({**stored, head: stored[embedding].clone()}, base / "model.safetensors", {"format": "pt"})
    assert basel(base, tmp_path / "out", rows, beside=True, epochs=(0, 1, 1), rate=1e-3).passed
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(after[embedding], stored[embedding]) and (head in after) == twice
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, after[embedding])
    assert torch.equal(after.get(head, after[embedding]), after[embedding])


@pytest.mark.parametrize("more", [{"loss": "kl"}, {"basis": "whitened"}, {"preset": "weights-only"}])
def test_other_ways_end_in_a_sound_directory(
    more: dict[str, Any], bases: Base, rows: Path, tmp_path: Path
) -> None:
    given = {"epochs": (1, 1, 1), **more}
    if "preset" in more:
        given.pop("epochs")
    result = basel(bases("llama"), tmp_path / "out", rows, **given)
    assert result.passed and result.figures["keep_selected"] == pytest.approx(0.5, rel=0.02)


def test_all_kept_is_nothing_changed(bases: Base, rows: Path, tmp_path: Path) -> None:
    base, out = bases("llama"), tmp_path / "out"
    result = basel(base, out, rows, keep=1.0)
    assert result.last.description.summary == "All bases of {base} kept: nothing is changed."
    assert result.figures["keep_selected"] == 1.0
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_of_a_recipe_behind_another(bases: Base, rows: Path, tmp_path: Path) -> None:
    settings = {"data": str(rows), "keep": 0.5, "epochs": "1,1,0", "rows": 8, "prune_events": 2}
    steps = [{"laser": {"edits": ["mlp:1:k=3"]}}, {"basel": settings}, {"export": {"format": "dense"}}]
    result = kanna.run({"model": str(bases("llama")), "steps": steps}, out=tmp_path / "out")
    assert result.passed
    recorded = json.loads((tmp_path / "out" / "kanna.json").read_text())["steps"]
    assert [step["method"] for step in recorded] == ["laser", "basel", "export"]


def test_killed_anywhere_and_resumed_gives_the_same_bytes(bases: Base, rows: Path, tmp_path: Path) -> None:
    base, reference = bases("llama"), tmp_path / "reference" / "out"
    in_child(lambda: basel(base, tmp_path / "first" / "out", rows))
    points = names_taken(lambda: basel(base, reference, rows), tmp_path / "count")
    for point in range(2, points + 1, max(1, points // 8)):
        out = tmp_path / str(point) / "out"
        status, resumed = killed_and_resumed(
            lambda resume, o=out: basel(base, o, rows, resume=resume), point, late=bool(point % 2)
        )
        assert (status, resumed) == (-9, 0), (point, points)
        assert hashes(out) == hashes(reference), point


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"keep": 0.001}, "one basis and the new ones"),
        ({"select": "down@99"}, "layer"),
        ({"prune_events": 1000}, "1000 events do not fit"),
        ({"context": 100_000}, "positions"),
        ({"chat": True}, "no chat template"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything(
    given: dict[str, Any], named: str, bases: Base, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=named):
        basel(bases("llama"), tmp_path / "out", rows, **given)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_cannot_be_learnt_are_refused(bases: Base, rows: Path, tmp_path: Path) -> None:
    base, data = bases("llama"), tmp_path / "data.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:15]))
    with pytest.raises(InputError, match="15 rows; at least 16"):
        basel(base, tmp_path / "out", data)
    data.write_text("".join(lines[:20]) + '{"text": "abc"}\n')
    with pytest.raises(InputError, match=r"row .* has no prompt"):
        basel(base, tmp_path / "out", data)
    asked = kanna.criteria_of([str(rows)], "50pt")
    with pytest.raises(InputError, match=r"40 of the 40 rows of train.jsonl are in .* too"):
        basel(base, tmp_path / "out", rows, criteria=asked)
    assert basel(
        base, tmp_path / "out", rows, criteria=asked, allow_overlap=True, epochs=(0, 1, 0)
    ).comparison


def test_rows_to_choose_on_must_not_be_asked_either(bases: Base, rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"{i:03d}b", "answer": "c"}) + "\n" for i in range(20)))
    asked = kanna.criteria_of([str(other)], "50pt")
    with pytest.raises(InputError, match=r"20 of the 20 rows of other.jsonl are in .*other.jsonl too"):
        basel(bases("llama"), tmp_path / "out", rows, validation=other, criteria=asked)


def test_what_was_written_is_compared_with_what_was_trained(
    bases: Base, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert basel(bases("llama"), tmp_path / "out", rows).verdict.deviation is not None
    right = execute._stored

    def other(*given: Any) -> Any:
        forms, tensors = right(*given)
        name = next(name for name in tensors if name.endswith("expand.weight"))
        return forms, {**tensors, name: tensors[name] * 1.5}

    monkeypatch.setattr(execute, "_stored", other)
    assert not basel(bases("llama"), tmp_path / "wrong", rows).passed


def test_a_compressed_model_is_refused_with_what_to_do(bases: Base, rows: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    kanna.lowrank(bases("llama"), first, kanna.LowRankConfig(keep=0.6, method="plain", align=1))
    with pytest.raises(InputError, match="already compressed") as error:
        basel(first, tmp_path / "out", rows)
    assert "start from the model before" in str(error.value.remedy)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_is_refused_by_name_and_nothing_is_written(
    name: str, rows: Path, tmp_path: Path
) -> None:
    base = encoder_decoders.save(name, tmp_path / "base")
    for dry_run in (True, False):
        with pytest.raises(InputError, match="an encoder with a decoder is not trained"):
            basel(base, None if dry_run else tmp_path / "out", rows, dry_run=dry_run)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_factors_of_lowrank_are_trained_as_they_are(
    family: str, bases: Base, rows: Path, tmp_path: Path
) -> None:
    base, first = bases(family), tmp_path / "first"
    kanna.lowrank(base, first, kanna.LowRankConfig(keep=0.6, method="plain", align=1, select="mlp"))
    result = basel(base, tmp_path / "out", rows, keep=None, start=first, factor_rate=0.01)
    assert result.passed and result.figures["steps"] == 4 * 5  # as many as both parts would take
    start, out = Source.open(first), Source.open(tmp_path / "out")
    assert start.forms == out.forms
    old, new = load_file(first / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    selected = {matrix.name: matrix for matrix in result.plan.selected}
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    trained = {out.prefix(matrix.module) for matrix in selected.values()}
    assert {name for name in changed if not any(name.startswith(f"{path}.") for path in trained)} == set()
    assert len(changed) >= len(trained)
    count = sum(out.parameters(matrix) for matrix in result.plan.selected)
    assert result.figures["keep_selected"] == pytest.approx(count / result.plan.parameters)


def test_settings_of_bases_are_idle_beside_a_start_and_that_is_said(
    bases: Base, rows: Path, tmp_path: Path
) -> None:
    base, low = bases("llama"), tmp_path / "low"
    kanna.lowrank(base, low, kanna.LowRankConfig(keep=0.6, method="plain", align=1, select="mlp"))
    given = {"data": rows, "select": "mlp"}
    idle = BaselConfig(**given, start=low, importance="sigma", prune_events=3, factor_rate=0.01)
    (note,) = (n for n in kanna.basel(base, None, idle, dry_run=True).plan.notes if "no effect" in n)
    assert note.startswith("--importance, --prune-events: no effect")
    for config in (BaselConfig(**given, start=low), BaselConfig(**given, keep=0.6, importance="sigma")):
        plan = kanna.basel(base, None, config, dry_run=True).plan
        assert not any("no effect" in note for note in plan.notes)


def test_a_start_that_is_none_is_refused(bases: Base, rows: Path, text: Path, tmp_path: Path) -> None:
    base, first = bases("llama"), tmp_path / "first"
    with pytest.raises(InputError, match="has no factors of kanna"):
        basel(base, tmp_path / "out", rows, keep=None, start=base)
    for select, refine in (("all", 0), ("mlp", 3)):
        start = tmp_path / select
        config = kanna.LowRankConfig(
            keep=0.6, select=select, refine=refine, allocation="uniform", **tiny.SETTINGS
        )
        kanna.lowrank(base, start, config, calibration=text)
        named = "not selected" if select == "all" else "norm"
        with pytest.raises(InputError, match=named):
            basel(base, tmp_path / "out", rows, keep=None, start=start, select="mlp")
    with pytest.raises(InputError, match="model that is read"):
        start = tmp_path / "all"
        basel(base, start, rows, keep=None, start=start, force=True, select="all")
    kanna.lowrank(bases("qwen2"), first, kanna.LowRankConfig(keep=0.6, method="plain", align=1))
    with pytest.raises(InputError, match=r"was made from qwen2 .* and not from llama"):
        basel(base, tmp_path / "out", rows, keep=None, start=first)
    with pytest.raises(ValueError, match="give one of keep, keep_sigma and start"):
        BaselConfig(data=rows, keep=0.5, start=first)


def test_a_report_shows_what_was_learnt(bases: Base, rows: Path, tmp_path: Path) -> None:
    basel(bases("llama"), tmp_path / "out", rows)
    told = json.loads((tmp_path / "out" / "kanna-basel.json").read_text())
    assert told["kind"] == "basel" and len(told["events"]) == 3
    kept = sum(m["kept"] * m["out_features"] * m["in_features"] for m in told["matrices"])
    assert kept == pytest.approx(told["keep_selected"] * told["parameters"])
    assert [sum(event["bases"]) for event in told["events"]] == sorted(
        (sum(event["bases"]) for event in told["events"]), reverse=True
    )
    kanna.report([tmp_path / "out"], tmp_path / "report.html")
    page, words = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    for title in ("Bases by role", "Share of each matrix that is kept", "Loss while weights are learnt"):
        assert title in page and title in words
    assert page.count("<polyline") == 7 + 2 + 2  # roles, and learnt and held out of both parts
