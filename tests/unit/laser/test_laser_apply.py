"""Edits applied to models on disk: exactly what was asked changes, and it can be undone."""

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import family_configs
import pytest
import tiny_encoders
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_model import save_model, save_tokenizer
from torch import Tensor

import kanna as package
from kanna.checkpoint.loader import load
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.forms import dense_weight
from kanna.methods.laser import apply as module
from kanna.methods.laser import run, step
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.restore import restore
from kanna.methods.laser.run import laser_apply
from kanna.models.inventory import inventory
from kanna.models.skeleton import skeleton
from kanna.models.views import read, row_index

IDS = torch.arange(3, 27).reshape(2, 12)


def apply(model: Path, out: Path, *edits: str, **given: Any) -> run.LaserResult:
    own = {key: given.pop(key) for key in ("force", "dry_run") if key in given}
    return laser_apply(model, out, LaserConfig(edits=edits, **given), **own)


def tensors(directory: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(directory)
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


def digests(directory: Path) -> dict[str, str]:
    checkpoint = Checkpoint.open(directory)
    return {name: hashlib.sha256(checkpoint.raw(name)).hexdigest() for name in checkpoint.tensors}


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def changed(before: Path, after: Path) -> set[str]:
    old, new = digests(before), digests(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


def logits(directory: Path) -> Tensor:
    model, _ = load(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(IDS).logits


def family(name: str, directory: Path, **options: Any) -> Path:
    model = family_configs.model(name)
    model.save_pretrained(directory, **options)
    save_tokenizer(directory)
    return directory


def truncated(weight: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@pytest.mark.parametrize(
    ("edits", "given"),
    [
        ((), {}),
        (("mlp:all:1",), {}),
        (("mlp:all:1.0", "q:0:k=32"), {}),
        (("attn:all:1",), {"factored": True}),
        (("mlp:all:energy=1",), {}),
        (("mlp:all:0.2",), {"mode": "none"}),
        (("mlp:all:0",), {"mode": "bottom"}),
        (("mlp:all:1",), {"mode": "magnitude"}),
        (("mlp:all:1",), {"mode": "random", "blocks": 3}),
    ],
)
def test_nothing_to_do_changes_nothing_and_decomposes_nothing(base, tmp_path, monkeypatch, edits, given):
    def never(_: Tensor) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr(module, "decompose", never)
    monkeypatch.setattr("kanna.linalg.reduction.decompose", never)
    result = apply(base, tmp_path / "out", *edits, **given)
    assert result.passed and result.plan.reductions == () and result.spectra == ()
    assert changed(base, tmp_path / "out") == set()
    assert torch.equal(logits(base), logits(tmp_path / "out"))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == json.loads((base / "config.json").read_text())


def test_exactly_the_named_matrices_change(base, tmp_path):
    result = apply(base, tmp_path / "out", "up:1:0.5", "q,o:-1:k=3")
    names = {
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.11.self_attn.q_proj.weight",
        "model.layers.11.self_attn.o_proj.weight",
    }
    assert changed(base, tmp_path / "out") == names
    old, new = tensors(base), tensors(tmp_path / "out")
    for one in result.plan.reductions:
        expected = truncated(old[one.tensor], one.rank)
        torch.testing.assert_close(new[one.tensor].double(), expected, rtol=0, atol=1e-6)
    spectra = {one.matrix: one for one in result.spectra}
    values = torch.linalg.svdvals(old["model.layers.1.mlp.up_proj.weight"].double())
    found = spectra["model.layers.1.mlp.up_proj"]
    assert found.rank == 16 and found.at_rank == pytest.approx(float(values[15] / values[0]))
    assert found.energy == pytest.approx(float(values[:16].square().sum() / values.square().sum()))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "falcon_40b"])
@pytest.mark.parametrize("factored", [False, True])
def test_an_edit_of_q_leaves_k_and_v_in_their_fused_weight(name, factored, tmp_path):
    base = family(name, tmp_path / "base")
    result = apply(base, tmp_path / "out", "q:1:k=2", factored=factored)
    assert result.passed
    found = inventory(skeleton(base))
    q, k, v = (next(m for m in found.matrices if m.layer == 1 and m.role == r) for r in "qkv")
    assert q.tensor == k.tensor == v.tensor
    old = tensors(base)
    written = package.load(tmp_path / "out", dtype=torch.float32)[0]
    if factored:
        dense = dense_weight(written.get_submodule(q.module))
        parameter = dense.T if q.view.transposed else dense
        others = {n for n, d in digests(tmp_path / "out").items() if digests(base).get(n) != d}
        assert all(n.startswith(f"{result.plan.reductions[0].tensor.rpartition('.')[0]}.") for n in others)
    else:
        assert changed(base, tmp_path / "out") == {result.plan.reductions[0].tensor}
        parameter = written.get_parameter(q.tensor)
    before = old[result.plan.reductions[0].tensor]
    for one in (k, v):
        assert torch.equal(read(parameter, one.view), read(before, one.view))
    expected = truncated(read(before, q.view), 2)
    torch.testing.assert_close(read(parameter, q.view).double(), expected, rtol=0, atol=1e-6)
    if q.has_bias and not factored:
        bias = f"{result.plan.reductions[0].tensor.rpartition('.')[0]}.bias"
        assert torch.equal(tensors(tmp_path / "out")[bias], old[bias])
    assert len(row_index(q.view.rows)) == q.out_features


def test_zero_is_rho_0_is_zeroing_by_hand(base, tmp_path):
    apply(base, tmp_path / "zero", "down:3:0.5", mode="zero")
    apply(base, tmp_path / "rho", "down:3:0")
    by_hand = digests(base) | {
        "model.layers.3.mlp.down_proj.weight": hashlib.sha256(
            torch.zeros_like(tensors(base)["model.layers.3.mlp.down_proj.weight"]).numpy().tobytes()
        ).hexdigest()
    }
    assert digests(tmp_path / "zero") == digests(tmp_path / "rho") == by_hand


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("llama", {}),
        ("llama", {"factored": True}),
        ("gpt2", {"factored": True}),
        ("gpt2", {"mode": "bottom"}),
        ("bert_mlm", {"factored": True}),
        ("qwen2", {"blocks": 2}),
        ("qwen2", {"mode": "noise", "seed": 3}),
    ],
)
@pytest.mark.parametrize("originals", [False, True])
def test_restore_gives_the_original_bits(name, given, originals, tmp_path):
    base = family(name, tmp_path / "base") if name != "bert_mlm" else tmp_path / "base"
    if name == "bert_mlm":
        tiny_encoders.save_encoder(base, "Bert")
    apply(base, tmp_path / "out", "mlp:-1:k=3", "q:0:k=2", keep_originals=originals, **given)
    if originals:
        base.rename(tmp_path / "elsewhere")
        base = tmp_path / "elsewhere"
    assert digests(tmp_path / "out") != digests(base)
    restore(tmp_path / "out", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(base)
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config == json.loads((base / "config.json").read_text())
    loaded, _ = load(tmp_path / "back", dtype=torch.float32)
    again, _ = load(base, dtype=torch.float32)
    assert all(torch.equal(a, again.state_dict()[n]) for n, a in loaded.state_dict().items())


def test_restore_wants_the_very_base(base, tmp_path, kanna):
    apply(base, tmp_path / "out", "down:3:0.5")
    code, _, said = kanna("laser", "restore", tmp_path / "out", "--out", tmp_path / "a")
    assert code == 2 and "--base" in said and "--keep-originals" in said
    other = save_model(tmp_path / "other", num_hidden_layers=1)
    code, _, said = kanna("laser", "restore", tmp_path / "out", "--base", other, "--out", tmp_path / "a")
    assert code == 2 and "not the model" in said
    code, _, said = kanna("laser", "restore", base, "--out", tmp_path / "a")
    assert code == 2 and "no rank reductions" in said
    assert not (tmp_path / "a").exists()
    assert kanna("laser", "restore", tmp_path / "out", "--base", base, "--out", tmp_path / "a")[0] == 0
    assert digests(tmp_path / "a") == digests(base)


def test_restore_refuses_damaged_originals(base, tmp_path):
    out = tmp_path / "out"
    apply(base, out, "down:3:0.5", keep_originals=True)
    path = out / step.ORIGINALS / "model.safetensors"
    kept = load_file(path)
    save_file({name: tensor + 1 for name, tensor in kept.items()}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="has changed"):
        restore(out, tmp_path / "back")
    (out / "kanna.json").unlink()
    with pytest.raises(InputError, match="does not give back"):
        restore(out, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_two_steps_are_undone_one_by_one(base, tmp_path):
    apply(base, tmp_path / "one", "down:3:0.5", keep_originals=True)
    apply(tmp_path / "one", tmp_path / "two", "up:3:0.5", keep_originals=True)
    assert len(json.loads((tmp_path / "two/kanna.json").read_text())["steps"]) == 2
    (tmp_path / "one").rename(tmp_path / "moved")
    restore(tmp_path / "two", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(tmp_path / "moved") != digests(base)
    assert len(json.loads((tmp_path / "back/kanna.json").read_text())["steps"]) == 1
    restore(tmp_path / "moved", tmp_path / "first")
    assert digests(tmp_path / "first") == digests(base)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "phi"])
def test_factors_are_the_same_function_and_smaller_by_exactly_what_was_said(name, tmp_path):
    base = family(name, tmp_path / "base", **({"max_shard_size": "20KB"} if name == "qwen2" else {}))
    edits = ("mlp:1:k=4", "v:0:k=2")
    dense = apply(base, tmp_path / "dense", *edits)
    factored = apply(base, tmp_path / "factored", *edits, factored=True)
    expected = logits(tmp_path / "dense")
    difference = (logits(tmp_path / "factored") - expected).abs().max()
    assert difference <= 1e-4 * expected.abs().max()
    assert not torch.equal(expected, logits(base))
    drop = sum(one.matrix.parameters - one.rank * sum(one.matrix.shape) for one in factored.plan.reductions)
    assert drop > 0 and all(one.factored for one in factored.plan.reductions)
    assert dense.figures["parameters_after"] == dense.figures["parameters_before"]
    assert factored.figures["parameters_after"] == dense.figures["parameters_before"] - drop
    counted = sum(p.numel() for p in load(tmp_path / "dense", dtype=torch.float32)[0].parameters())
    written = sum(p.numel() for p in load(tmp_path / "factored", dtype=torch.float32)[0].parameters())
    assert written == counted - drop
    sizes = [
        sum(f.stat().st_size for f in (tmp_path / n).glob("*.safetensors")) for n in ("dense", "factored")
    ]
    assert 0 <= sizes[1] - (sizes[0] - 4 * drop) < 4096  # longer headers


def test_above_break_even_it_stays_dense_and_says_so(base, tmp_path):
    result = apply(base, tmp_path / "out", "up:3:0.9", "down:3:0.25", factored=True)
    stored = {one.matrix.role: one.factored for one in result.plan.reductions}
    assert stored == {"up": False, "down": True}
    assert any("up_proj stays dense: rank 28 is above the break-even rank 21" in n for n in result.plan.notes)


def test_dense_output_needs_no_kanna_and_factors_do(base, tmp_path):
    apply(base, tmp_path / "dense", "mlp:3:0.25")
    apply(base, tmp_path / "factored", "mlp:3:0.25", factored=True)
    torch.save({n: logits(tmp_path / n) for n in ("dense", "factored")}, tmp_path / "logits.pt")
    code = (
        "import sys, torch, transformers\n"
        "root = sys.argv[1]\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "known = torch.load(f'{root}/logits.pt')\n"
        "ids = torch.arange(3, 27).reshape(2, 12)\n"
        "def same(name):\n"
        "    kind = transformers.AutoModelForCausalLM\n"
        "    model = kind.from_pretrained(f'{root}/{name}', dtype=torch.float32).eval()\n"
        "    with torch.no_grad(): return torch.equal(model(ids).logits, known[name])\n"
        "assert same('dense') and 'kanna' not in sys.modules\n"
        "try: same('factored')\n"
        "except Exception: pass\n"
        "else: raise SystemExit('random weights without a word')\n"
        "import kanna\n"
        "assert same('factored')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(torch.get_num_threads())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.parametrize(
    "given",
    [{}, {"factored": True, "keep_originals": True}, {"mode": "random", "seed": 5}, {"mode": "noise"}],
)
def test_the_same_input_gives_the_same_bytes(base, tmp_path, given):
    elsewhere = Path(tmp_path / "b" / "c")
    elsewhere.mkdir(parents=True)
    apply(base, tmp_path / "out", "mlp:all:0.25", "q:1:k=3", **given)
    apply(base, elsewhere / "out", "mlp:all:0.25", "q:1:k=3", **given)
    assert files(tmp_path / "out") == files(elsewhere / "out")


def test_edits_commute_and_the_smaller_rank_wins(base, tmp_path):
    apply(base, tmp_path / "ab", "down:3:0.25", "up:7:0.5")
    apply(base, tmp_path / "ba", "up:7:0.5", "down:3:0.25")
    assert digests(tmp_path / "ab") == digests(tmp_path / "ba")
    apply(base, tmp_path / "a", "down:3:0.25")
    apply(tmp_path / "a", tmp_path / "then b", "up:7:0.5")
    assert digests(tmp_path / "ab") == digests(tmp_path / "then b")
    apply(base, tmp_path / "both", "down:3:0.5", "down:3:0.25", "mlp:3:1")
    assert digests(tmp_path / "both") == digests(tmp_path / "a")


def test_rank_0_of_a_rho_above_0_is_told(base, tmp_path, kanna):
    code, _, said = kanna("laser", "apply", base, "--edit", "down:3:0.01", "--out", tmp_path / "out")
    assert code == 0 and "rho 0.01 of rank 32 is rank 0, all zeros" in said
    name = "model.layers.3.mlp.down_proj.weight"
    assert not tensors(tmp_path / "out")[name].any()
    assert "rank 0" not in kanna("laser", "apply", base, "--edit", "down:3:0", "--out", tmp_path / "o")[2]
    code, out, _ = kanna("laser", "apply", base, "--edit", "down:3:0.01", "--dry-run")
    assert code == 0 and "is rank 0" in out and "dry run" in out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(dtype, tmp_path):
    base = save_model(tmp_path / "base")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    loaded.save_pretrained(tmp_path / "half")
    save_tokenizer(tmp_path / "half")
    apply(tmp_path / "half", tmp_path / "out", "mlp:0:0.5")
    old, new = tensors(tmp_path / "half"), tensors(tmp_path / "out")
    limit = 3e-4 if dtype == torch.float16 else 3e-3
    for name in changed(tmp_path / "half", tmp_path / "out"):
        exact = truncated(old[name].float(), 16)
        assert new[name].dtype == dtype
        assert (new[name].double() - exact).norm() <= limit * exact.norm()


def test_sharded_and_tied_models(tmp_path):
    base = save_model(tmp_path / "base", max_shard_size="20KB")
    assert len(Checkpoint.open(base).files) > 2 and "lm_head.weight" not in Checkpoint.open(base).tensors
    for factored in (False, True):
        out = tmp_path / f"out-{factored}"
        assert apply(base, out, "mlp:all:0.25", "attn:0:k=2", factored=factored, keep_originals=True).passed
        model, _ = load(out, dtype=torch.float32)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        restore(out, tmp_path / f"back-{factored}")
        assert digests(tmp_path / f"back-{factored}") == digests(base)
    whole = save_model(tmp_path / "whole")
    apply(whole, tmp_path / "out", "mlp:all:0.25", "attn:0:k=2")
    assert digests(tmp_path / "out") == digests(tmp_path / "out-False")


def test_factors_take_lora(base, tmp_path):
    peft = pytest.importorskip("peft")
    out = tmp_path / "out"
    apply(base, out, "mlp:3:0.25", "q:5:k=4", factored=True)
    model = package.load(out, dtype=torch.float32)[0]
    targets = package.lora_targets(model)
    assert len(targets) == 2 * 4
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.0))
    before = copy.deepcopy(tuned.eval()(IDS).logits.detach())
    assert torch.equal(before, logits(out))
    optimiser = torch.optim.SGD((p for p in tuned.parameters() if p.requires_grad), 0.5)
    tuned(IDS, labels=IDS).loss.backward()
    optimiser.step()
    after = tuned(IDS).logits.detach()
    assert not torch.equal(after, before)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits.detach(), after, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), after, rtol=1e-4, atol=1e-5)


def poisoned(base: Path, out: Path, value: float) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_parameter("model.layers.3.mlp.down_proj.weight")[1, 2] = value
    model.save_pretrained(out)
    save_tokenizer(out)
    return out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("more", [(), ("--factored",), ("--mode", "magnitude"), ("--mode", "zero")])
def test_weights_that_are_no_numbers_are_refused(base, tmp_path, kanna, value, more):
    bad = poisoned(base, tmp_path / "bad", value)
    words = ("--edit", "down:all:0.25", "--out", tmp_path / "out", *more)
    code, out, said = kanna("laser", "apply", bad, *words)
    assert code == 2 and out == "" and "model.layers.3.mlp.down_proj" in said and "NaN or infinite" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_quantised_and_compressed_models_are_refused(base, tmp_path, kanna):
    quantised = save_model(tmp_path / "q")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    code, _, said = kanna("laser", "apply", quantised, "--edit", "down:0:0.5", "--out", tmp_path / "out")
    assert code == 2 and "already quantized" in said and "gptq" in said
    # Factors are taken (tests/unit/chains), but not by every mode.
    apply(base, tmp_path / "factored", "down:3:0.25", factored=True)
    words = ("--edit", "down:3:0.1", "--mode", "bottom", "--out", tmp_path / "out")
    code, _, said = kanna("laser", "apply", tmp_path / "factored", *words)
    assert code == 2 and "only the first components can be kept" in said and "kanna export" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--edit", "banana:0:0.5"), "no matrix has the role 'banana'"),
        (("--edit", "down:12:0.5"), "there is no layer 12"),
        (("--edit", "down:0:1.5"), "outside 0 to 1"),
        (("--edit", "down:0:k=33"), "has no rank 33"),
        (("--edit", "down:0:k=17", "--blocks", "2"), "has no rank 17"),
        (("--edit", "k:0:0.5", "--blocks", "17"), "cannot be cut into 17 blocks"),
        (("--edit", "down:0:mp", "--blocks", "2"), "looks at the spectrum of a whole matrix"),
        (("--edit", "down:0:0.5", "--mode", "best"), "mode"),
        (("--edit", "down:0:0.5", "--factored", "--mode", "bottom"), "mode top"),
        (("--edit", "down"), "cannot be read"),
    ],
)
def test_requests_that_cannot_be_met(base, tmp_path, kanna, words, said):
    code, out, err = kanna("laser", "apply", base, *words, "--out", tmp_path / "out")
    assert code == 2 and out == "" and said in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_the_way(base, tmp_path, kanna):
    words = ("laser", "apply", base, "--edit", "down:0:0.5", "--out", tmp_path / "out")
    assert kanna(*words)[0] == 0
    before = files(tmp_path / "out")
    code, _, said = kanna(*words)
    assert code == 2 and "exists already" in said and "--force" in said
    assert kanna(*words, "--mode", "zero", "--force")[0] == 0
    assert files(tmp_path / "out") != before
    code, _, said = kanna("laser", "apply", base, "--edit", "down:0:0.5")
    assert code == 2 and "--out" in said


def test_stacked_experts_are_refused_by_name(tmp_path, kanna):
    base = family("mixtral", tmp_path / "base")
    code, _, said = kanna("laser", "apply", base, "--edit", "mlp:0:0.5", "--out", tmp_path / "out")
    assert code == 2 and "experts" in said and not (tmp_path / "out").exists()


def test_encoders_and_classifiers(tmp_path):
    for head in ("ForMaskedLM", "ForSequenceClassification"):
        base = tiny_encoders.save_encoder(tmp_path / head, "Roberta", head)
        result = apply(base, tmp_path / f"{head}-out", "mlp_in:-1:0.25", factored=True)
        assert result.passed and result.figures["modules_factored"] == 1


def test_what_is_recorded(base, tmp_path):
    result = apply(base, tmp_path / "out", "down:3:0.25", "up:2:energy=0.5")
    manifest = json.loads((tmp_path / "out" / step.MANIFEST).read_text())
    ranks = {one["matrix"]: one["rank"] for one in manifest["edits"]}
    assert ranks["model.layers.3.mlp.down_proj"] == 8
    weight = tensors(base)["model.layers.2.mlp.up_proj.weight"].double()
    squares = torch.linalg.svdvals(weight).square()
    needed = int((squares.cumsum(0) < 0.5 * squares.sum()).sum()) + 1
    assert ranks["model.layers.2.mlp.up_proj"] == needed
    assert all(one["spectrum"]["rank"] == one["rank"] for one in manifest["edits"])
    known = json.loads((tmp_path / "out/kanna.json").read_text())
    assert known["steps"][0]["method"] == "laser" and known["base"] == manifest["made_from"]
    assert known["steps"][0]["config"]["edits"] == ["down:3:0.25", "up:2:energy=0.5"]
    assert result.to_dict()["plan"]["reductions"][0]["matrix"] == "model.layers.2.mlp.up_proj"
    assert (tmp_path / "out/README.md").read_text().startswith("---")
