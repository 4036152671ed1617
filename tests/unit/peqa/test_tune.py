"""`kanna.tune`: what is written, what stays, and what is learnt."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from letter_rows import lines, rows_of
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import kanna
from kanna.errors import InputError
from kanna.runs.criteria import criteria_of
from kanna.runs.opened import Opened

Quantised = Callable[[str], Path]
IDS = torch.tensor([[3, 7, 11, 5, 2, 9, 4, 8]])


def files(directory: Path) -> dict[str, str]:
    """sha256 of all that is not of sets."""
    found = (path for path in directory.rglob("*") if path.is_file() and "scales" not in path.parts)
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def logits(base: Path, scales: str | None) -> torch.Tensor:
    model, _ = kanna.load(base, scales=scales)
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def test_no_file_of_the_model_changes(quantised: Quantised, tuned: Path) -> None:
    assert files(tuned) == files(quantised("llama"))


def test_what_lies_in_a_set(tuned: Path) -> None:
    """A number for each row of each matrix, or for each group of eight inputs; and little else."""
    stored = load_file(tuned / "model.safetensors")
    rows = sum(value.shape[0] for name, value in stored.items() if name.endswith("weight_packed"))
    groups = sum(value.numel() for name, value in stored.items() if name.endswith("weight_scale"))
    for name, numbers in (("law", rows), ("fine", groups)):
        held = load_file(tuned / "scales" / name / "scales.safetensors")
        assert sum(value.numel() for value in held.values()) == numbers
        assert all(value.dtype == torch.float32 for value in held.values())
        assert any(value.abs().max() > 0.01 for value in held.values())
        size = (tuned / "scales" / name / "scales.safetensors").stat().st_size
        assert 4 * numbers < size < 4 * numbers + 65536
        record = json.loads((tuned / "scales" / name / "scales.json").read_text())
        assert record["numbers"] == numbers and record["scores"]["trainable"] == numbers
        assert record["data_hash"] and record["config"]["name"] == name


def test_the_set_is_the_scales_times_one_and_d(tuned: Path) -> None:
    """Logits of a model whose scales in the files were multiplied by hand."""
    for name in ("law", "fine"):
        model, _ = kanna.load(tuned, scales=None)
        held = load_file(tuned / "scales" / name / "scales.safetensors")
        for path, change in held.items():
            factor = 1 + (change[:, None] if change.dim() == 1 else change)
            model.get_submodule(path).weight_scale.mul_(factor)
        with torch.no_grad():
            expected = model(IDS).logits
        assert torch.equal(logits(tuned, name), expected)
        assert not torch.equal(expected, logits(tuned, None))


@pytest.mark.parametrize("family", ["gpt2", "phi3", "opt"])
def test_families(family: str, quantised: Quantised, data: Path, tmp_path: Path) -> None:
    """Transposed, fused, biased: the trained model is the one that is read back, block by block."""
    config = kanna.TuneConfig(data=data, name="law", steps=3, rows=4)
    result = kanna.tune(quantised(family), config, out=tmp_path / "out")
    assert result.verdict is not None and result.verdict.passed
    assert result.verdict.deviation is not None and result.verdict.deviation < 1e-5


def test_factors_of_whole_numbers(
    bases: Callable[[str], Path], text: Path, data: Path, tmp_path: Path
) -> None:
    """Both factors of a matrix have scales, and both are learnt."""
    low = kanna.LowRankConfig(keep=0.6, method="plain", select="mlp")
    kanna.lowrank(bases("llama"), tmp_path / "low", low)
    quant = kanna.QuantizeConfig(bits=4, group=8, method="minmax")
    kanna.quantize(tmp_path / "low", tmp_path / "base", quant)
    kanna.tune(tmp_path / "base", kanna.TuneConfig(data=data, name="law", steps=3, rows=4))
    held = load_file(tmp_path / "base" / "scales" / "law" / "scales.safetensors")
    inner = [name for name in held if name.endswith((".reduce", ".expand"))]
    assert inner and all(held[name].abs().max() > 0 for name in inner)


def test_it_learns_what_it_is_taught(quantised: Quantised, tmp_path: Path) -> None:
    """The loss falls on rows that were not learnt, and from each third of the course to the next."""
    data = lines(tmp_path / "many.jsonl", rows_of(7, 3, 400))
    config = kanna.TuneConfig(data=data, name="law", granularity="group", steps=60, rows=16, rate=0.05)
    result = kanna.tune(quantised("llama"), config, out=tmp_path / "out")
    found = result.figures
    assert found["held_out_loss_after"] < 0.93 * found["held_out_loss_before"]
    thirds = [sum(found["losses"][i : i + 20]) for i in (0, 20, 40)]
    assert thirds[0] > thirds[1] > thirds[2]


def test_scales_stay_in_their_range(quantised: Quantised, data: Path, tmp_path: Path) -> None:
    wide = {"data": data, "steps": 12, "rows": 8, "rate": 0.5}
    free = kanna.tune(quantised("llama"), kanna.TuneConfig(name="a", **wide), out=tmp_path / "a")
    held = load_file(tmp_path / "a" / "scales" / "a" / "scales.safetensors")
    flipped = sum(int((1 + value < 0).sum()) for value in held.values())
    assert flipped > 0 and free.figures["flipped"] == flipped
    config = kanna.TuneConfig(name="b", scale_range="0.9,1.2", **wide)
    kept = kanna.tune(quantised("llama"), config, out=tmp_path / "b")
    held = load_file(tmp_path / "b" / "scales" / "b" / "scales.safetensors")
    everything = 1 + torch.cat([value.flatten() for value in held.values()])
    assert kept.figures["flipped"] == 0
    assert float(everything.min()) == pytest.approx(0.9) and float(everything.max()) == pytest.approx(1.2)


def test_a_teacher_is_found_by_its_hash(
    quantised: Quantised, bases: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    """Beside the base lies what has the right name and is another model: it is not taken."""
    base = Path(shutil.copytree(quantised("llama"), tmp_path / "base"))
    config = kanna.TuneConfig(data=data, name="law", loss="kl", steps=4, rows=4)
    shutil.copytree(bases("qwen2"), tmp_path / "llama")
    with pytest.raises(InputError, match="is another model"):
        kanna.tune(base, config, out=tmp_path / "out")
    shutil.rmtree(tmp_path / "llama")
    with pytest.raises(InputError, match="--teacher"):
        kanna.tune(base, config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.copytree(bases("llama"), tmp_path / "llama")
    result = kanna.tune(base, config, out=tmp_path / "out")
    assert result.plan.teacher.name == "llama"
    assert result.figures["losses"][0] < 1  # a distance to the teacher, not the loss of right tokens


def test_the_verdict_is_on_the_base_with_the_set(
    tuned: Path, data: Path, asked: Path, tmp_path: Path
) -> None:
    """It compares with the base as it was quantised, whatever is in use."""
    base = Path(shutil.copytree(tuned, tmp_path / "base"))
    kanna.scales.activate(base, "support")
    config = kanna.TuneConfig(data=data, name="again", steps=6, rows=8, allow_overlap=True)
    result = kanna.tune(
        base, config, criteria=criteria_of([str(asked)], "50%", [], 0.95), cache=tmp_path / "cache"
    )
    assert result.comparison is not None
    (task,) = result.comparison.tasks
    for side, scales in ((task.base, None), (task.new, "again")):
        scored = kanna.evaluate(Opened.open(base, scales=scales), [asked], cache=tmp_path / "fresh")
        assert scored.scores[0].value == side.value
    record = json.loads((base / "scales" / "again" / "scales.json").read_text())
    assert record["scores"]["status"] == result.comparison.status
    assert kanna.scales.listed(base)[0].record.name == "again"


def test_a_chain_ends_with_the_set_in_use(bases: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    steps = [
        {"quantize": {"bits": 3, "group": 8, "method": "minmax"}},
        {"tune": {"data": str(data), "name": "law", "steps": 4, "rows": 4, "loss": "kl"}},
        {"tune": {"data": str(data), "name": "more", "steps": 4, "rows": 4, "granularity": "group"}},
    ]
    planned = kanna.run({"model": str(bases("llama")), "steps": steps}, dry_run=True)
    assert planned.steps[1].plan is not None and planned.steps[1].plan.teacher.name == "llama"
    kanna.run({"model": str(bases("llama")), "steps": steps}, out=tmp_path / "out")
    assert [one.record.name for one in kanna.scales.listed(tmp_path / "out") if one.active] == ["more"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, logits(tmp_path / "out", "more"))
    assert kanna.scales.verify(tmp_path / "out") == ["law", "more"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "base"}, "base is the model without any"),
        ({"name": "../law"}, "letters, digits"),
        ({"scale_range": "2,10"}, "holds 1"),
        ({"scale_range": "wide"}, "write 0.1,10"),
        ({"rate": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, object], words: str, data: Path) -> None:
    with pytest.raises(ValueError, match=words):
        kanna.TuneConfig(**{"data": data, "name": "law", **settings})


def test_what_cannot_be_tuned(bases: Callable[[str], Path], base: Path, data: Path, asked: Path) -> None:
    before = files(base)
    config = kanna.TuneConfig(data=data, name="new")
    with pytest.raises(InputError, match="no matrix of whole numbers"):
        kanna.tune(bases("llama"), config)
    assert not (bases("llama") / "scales").exists()
    with pytest.raises(InputError, match="exists already"):
        kanna.tune(base, kanna.TuneConfig(data=data, name="law", steps=1))
    with pytest.raises(InputError, match=r"are in .*train.jsonl too"):
        kanna.tune(base, config, criteria=criteria_of([str(data)], None, [], 0.95))
    with pytest.raises(InputError, match="add --loss kl"):
        kanna.tune(base, kanna.TuneConfig(data=data, name="new", teacher=base))
    assert not list((base / "scales").glob("new*")) and files(base) == before


@pytest.mark.parametrize("held", [False, True])
def test_the_file_of_a_wrong_row_is_named(held: bool, base: Path, data: Path, tmp_path: Path) -> None:
    """There may be two of rows, one to learn and one to choose on."""
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(f"{data.read_text().splitlines()[0]}\n" * 16 + '{"text": "abc"}\n')
    given = {"data": data, "validation": wrong} if held else {"data": wrong}
    with pytest.raises(InputError, match=r"wrong\.jsonl: row 17 has no prompt") as refused:
        kanna.tune(base, kanna.TuneConfig(name="new", allow_overlap=True, **given))
    assert "train.jsonl" not in refused.value.problem


def test_only_scales_are_in_the_optimiser(base: Path) -> None:
    model, _ = kanna.load(base)
    held = kanna.scales.trainable(model, "group")
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in held.values()}
    assert all(isinstance(p, nn.Parameter) and p.dtype == torch.float32 for p in held.values())
