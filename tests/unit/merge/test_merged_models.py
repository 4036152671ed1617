import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killing import hashes, in_child
from merge_models import VOCABULARY, by_ties, nearest, recipe, save_model, weights
from safetensors.torch import load_file, save_file
from transformers import SqueezeBertConfig, SqueezeBertForMaskedLM

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.card import front_matter
from kanna.checkpoint.reader import Checkpoint
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.methods.merge.journal import Journal, Note
from kanna.methods.merge.plan import BLOCK
from kanna.methods.merge.run import merge, merge_plan
from kanna.methods.merge.shards import written_shards

Models = dict[str, Path]


def ties(models: Models, **top: object) -> dict[str, object]:
    given = {
        models["a"]: {"weight": 0.5, "density": 0.3},
        models["b"]: {"weight": [0.25, 0.75], "density": 0.6},
    }
    return recipe("ties", given, base_model=str(models["base"]), **top)


def test_every_tensor_against_loops_in_float64(models: Models, tmp_path: Path) -> None:
    base, a, b = (weights(models[name]) for name in ("base", "a", "b"))
    out = tmp_path / "out"
    result = kanna.merge(ties(models, parameters={"lambda": 0.5}, dtype="bfloat16"), out)
    assert result.passed and result.verdict is not None and result.verdict.finite
    found = weights(out)
    assert found.keys() == base.keys()
    kept = of = 0
    for name, values in found.items():
        second = {"0": 0.25, "1": 0.75}[name.split(".")[2]] if "layers" in name else 0.25
        flat = [tensors[name].double().reshape(-1).tolist() for tensors in (base, a, b)]
        expected = by_ties(flat[0], flat[1:], [0.5, second], [0.3, 0.6], True, 0.5)
        # Halfway between two bfloat16 numbers the last bit of float32 decides.
        off = (values.reshape(-1) != nearest(expected, torch.bfloat16)).double().mean()
        assert values.dtype == torch.bfloat16 and float(off) < 2e-3, name
        kept += sum(max(1, int(density * len(flat[0]))) for density in (0.3, 0.6))
        of += 2 * len(flat[0])
    assert result.figures["kept_share"] == kept / of
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_sums_of_mixed_dtypes_have_the_widest(method: str, models: Models, tmp_path: Path) -> None:
    given = {models[name]: {"weight": weight} for name, weight in (("a", 0.4), ("b", 1.1))}
    top = {"base_model": str(models["base"])} if method == "task_arithmetic" else {}
    kanna.merge(recipe(method, given, **top), tmp_path / "out")
    base, a, b = (weights(models[name]) for name in ("base", "a", "b"))
    for name, values in weights(tmp_path / "out").items():
        x, y, z = (tensors[name].double() for tensors in (base, a, b))
        expected = (0.4 * y + 1.1 * z) / 1.5 if method == "linear" else x + 0.4 * (y - x) + 1.1 * (z - x)
        assert values.dtype == torch.float32
        assert float((values.double() - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_chunks_of_any_size_give_the_same_bytes(models: Models, tmp_path: Path) -> None:
    plan = merge_plan(ties(models, dtype="float16"))
    longest = max(tensor.spec.numbers for tensor in plan.tensors)
    assert longest > BLOCK and longest % BLOCK
    found = []
    for chunk in (BLOCK, 2 * BLOCK):
        work = tmp_path / str(chunk)
        work.mkdir()
        shards = written_shards(dataclasses.replace(plan, chunk=chunk), work, lambda *_: None, 40_000)
        assert len(shards.files) > 1
        found.append((list(shards.files.values()), shards.digests, shards.figures, hashes(work)))
    assert found[0] == found[1]


def test_a_killed_merge_goes_on_to_the_same_bytes(models: Models, tmp_path: Path) -> None:
    given = ties(models, dtype="float16")
    whole, out = tmp_path / "whole" / "out", tmp_path / "killed" / "out"
    merge(given, whole)
    for point in (1, 5, 12):

        def killed(point: int = point) -> None:
            original, count = Journal.add, 0

            def add(self: Journal, note: Note) -> None:
                nonlocal count
                original(self, note)
                count += 1
                if count == point:
                    os.kill(os.getpid(), signal.SIGKILL)

            Journal.add = add  # type: ignore[method-assign]
            merge(given, out)

        assert in_child(killed) == -signal.SIGKILL
        assert not out.exists()
        with pytest.raises(InputError, match="unfinished run"):
            merge(given, out)
        work = out.with_name("out.kanna-work") / "merge"
        if point == 5:  # what is noted and does not lie there is done again
            (shard,) = work.glob("*.safetensors")
            data = bytearray(shard.read_bytes())
            data[-1] ^= 1
            data[Checkpoint.open(whole).tensors["model.embed_tokens.weight"].offset] ^= 1
            shard.write_bytes(data)
        if point == 12:
            journal = work / "journal.jsonl"
            journal.write_text(journal.read_text() + '["cut short')
        merge(given, out, resume=True)
        assert hashes(out) == hashes(whole)
        assert not work.parent.exists()
        shutil.rmtree(out)


def test_other_settings_or_models_are_not_gone_on_with(models: Models, tmp_path: Path) -> None:
    def killed() -> None:
        original = Journal.add

        def add(self: Journal, note: Note) -> None:
            original(self, note)
            os.kill(os.getpid(), signal.SIGKILL)

        Journal.add = add  # type: ignore[method-assign]
        merge(ties(models), tmp_path / "out")

    assert in_child(killed) == -signal.SIGKILL
    with pytest.raises(InputError, match="other settings"):
        merge(ties(models, dtype="float16"), tmp_path / "out", resume=True)


def test_what_lies_beside_the_weights(models: Models, tmp_path: Path) -> None:
    (models["a"] / "README.md").write_text("---\nlicense: mit\n---\n")
    (models["base"] / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    out = tmp_path / "out"
    try:
        result = merge(ties(models), out)
    finally:
        (models["a"] / "README.md").unlink()
        (models["base"] / "README.md").unlink()
    recorded = lineage.read(out)
    assert recorded is not None and recorded.format_version == 2
    hashed = [(name, lineage.base_hash(Checkpoint.open(models[name]))) for name in ("base", "a", "b")]
    assert [(one.name, one.hash) for one in recorded.steps[0].inputs] == hashed
    assert (recorded.base.name, recorded.base.hash) == hashed[0]
    assert recorded.files == lineage.file_digests(out)
    matter = front_matter(out)
    assert matter["base_model"] == ["base", "a", "b"] and matter["base_model_relation"] == "merge"
    assert "merge" in matter["tags"] and "compression" not in matter["tags"]
    assert matter["license"] == "other" and matter["library_name"] == "transformers"
    assert any("different licences" in warning for warning in result.plan.warnings)
    text = (out / "README.md").read_text()
    assert "| a | mit |" in text and "| b | not said |" in text
    assert yaml.safe_load((out / "recipe.yaml").read_text())["models"][0]["model"] == "a"
    for path in out.rglob("*"):
        assert not path.is_file() or str(tmp_path.parent).encode() not in path.read_bytes()
    assert json.loads((out / "merge.json").read_text())["inputs"][1]["hash"] == hashed[1][1]
    found = kanna.merge_verify(out)
    assert found.passed and found.unrecorded == () and found.inputs == ("base", "a", "b")


def test_verify_sees_what_changed(models: Models, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(ties(models), out)
    (out / "notes.txt").write_text("mine")
    assert kanna.merge_verify(out, max_memory=0).unrecorded == ("notes.txt",)
    with pytest.raises(InputError, match="no such step"):
        kanna.merge_verify(models["base"])
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"model.safetensors has changed"):
        kanna.merge_verify(out)


def change(directory: Path, **tensors: torch.Tensor | None) -> None:
    path = directory / "model.safetensors"
    values = {**load_file(path), **tensors}
    save_file({name: value for name, value in values.items() if value is not None}, path)


def configure(directory: Path, **keys: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def tokens(directory: Path) -> None:
    vocabulary = {f"u{number}": number for number in range(VOCABULARY)}
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))


NORM = "model.norm.weight"
DAMAGE = [
    (lambda d: change(d, **{NORM: None}), f"holds no tensor '{NORM}'"),
    (lambda d: change(d, extra=torch.ones(2)), "holds no tensor 'extra'"),
    (lambda d: change(d, **{NORM: torch.ones(63)}), f"{NORM} has shape \\[63\\]"),
    (lambda d: change(d, **{NORM: torch.full((64,), float("nan"))}), f"{NORM} in .* NaN or infinite"),
    (lambda d: change(d, **{NORM: torch.full((64,), 1e30)}), f"{NORM}: 64 merged values are too large"),
    (lambda d: change(d, **{NORM: torch.ones(64, dtype=torch.int64)}), f"{NORM} is I64"),
    (lambda d: configure(d, model_type="mistral"), "another architecture"),
    (lambda d: configure(d, num_attention_heads=8), "num_attention_heads is 8"),
    (lambda d: configure(d, rms_norm_eps=1e-3), "rms_norm_eps is 0.001"),
    (lambda d: configure(d, vocab_size=401), "vocabularies differ"),
    (lambda d: configure(d, tie_word_embeddings=False), "a head of its own"),
    (lambda d: configure(d, quantization_config={"quant_method": "gptq"}), "already quantized"),
    (tokens, "vocabularies differ: the token"),
    (lambda d: os.truncate(d / "model.safetensors", 1000), "model.safetensors"),
    (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "pickle"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE, ids=[said for _, said in DAMAGE])
def test_models_that_do_not_fit_leave_no_trace(
    damage: Any, said: str, models: Models, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(models["b"], bad)
    damage(bad)
    given = {models["a"]: {"weight": 0.5}, bad: {"weight": 0.5}}
    with pytest.raises(InputError, match=said):
        merge(recipe("linear", given, dtype="float16"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_whole_numbers_are_copied_or_refused(tmp_path: Path) -> None:
    one, two = (save_model(tmp_path / name, seed, torch.float32) for seed, name in enumerate("xy"))
    for directory in (one, two):
        change(directory, buffer=torch.tensor([1, 2]), single=torch.tensor(0.5), none=torch.empty(0, 3))
    given = recipe("linear", {one: {"weight": 1}, two: {"weight": 1}})
    result = merge(given, tmp_path / "out")
    found = weights(tmp_path / "out")
    assert found["buffer"].tolist() == [1, 2] and found["single"].item() == 0.5
    assert found["none"].shape == (0, 3) and result.figures["tensors_copied"] == 1
    change(two, buffer=torch.tensor([1, 3]))
    with pytest.raises(InputError, match="buffer, whose values are whole numbers, is another"):
        merge(given, tmp_path / "other")
    assert not list(tmp_path.glob("other*"))


def test_outputs_that_are_there_and_memory_that_is_too_little(models: Models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        merge(ties(models), tmp_path / "out")
    with pytest.raises(InputError, match="lies in"):
        merge(ties(models), models["base"] / "out")
    with pytest.raises(InputError, match="too little for 3 models"):
        merge_plan(ties(models), max_memory=10**9)


def test_the_verbs(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "recipe.yml", tmp_path / "out"
    path.write_text(yaml.safe_dump(ties(models)))
    assert main(["merge", "plan", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "merge-plan" and len(told["groups"]) == 2
    assert main(["merge", "plan", str(path)]) == 0
    assert main(["merge", "run", str(path), "--out", str(out), "--out-dtype", "float16", "--json"]) == 0
    assert {value.dtype for value in weights(out).values()} == {torch.float16}
    assert main(["merge", "run", str(path), "--out", str(out)]) == 2
    capsys.readouterr()
    assert main(["merge", "verify", str(out)]) == 0
    assert "a merge of base, a, b" in capsys.readouterr().out
    assert main(["merge", "run", str(path), "--out", str(tmp_path / "o2"), "--max-memory", "much"]) == 2
    assert main(["run", str(path)]) == 2
    assert "does not say where the result goes" in capsys.readouterr().err
    with pytest.raises(InputError, match="merge takes several models"):
        kanna.run({"model": str(models["base"]), "out": str(tmp_path / "o3"), "steps": [{"merge": {}}]})


def test_models_that_are_alike_are_merged_without_transformers(models: Models, tmp_path: Path) -> None:
    """Whose import takes longer than merging a small model; it is there for loading the result."""
    given = tmp_path / "recipe.yml"
    given.write_text(yaml.safe_dump(ties(models, dtype="float16")))
    script = (
        "import sys, kanna\n"
        f"done = kanna.merge({str(given)!r}, {str(tmp_path / 'out')!r}, load=False)\n"
        "assert done.passed and done.verdict is None and 'as was asked for' in done.note\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'transformers', 'scipy', 'numba'}))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
    loaded = kanna.merge(given, tmp_path / "loaded")
    assert loaded.verdict is not None
    assert weights(loaded.out).keys() == weights(tmp_path / "out").keys()
    assert hashes(loaded.out)["model.safetensors"] == hashes(tmp_path / "out")["model.safetensors"]


def test_a_model_without_linear_layers_is_merged_by_names(tmp_path: Path) -> None:
    """Of SqueezeBERT all layers are convolutions."""
    sizes = {"vocab_size": 30, "hidden_size": 16, "embedding_size": 16, "intermediate_size": 24}
    groups = [f"{name}_groups" for name in ("q", "k", "v", "post_attention", "intermediate", "output")]
    config = SqueezeBertConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, **dict.fromkeys(groups, 1)
    )
    for name, seed in (("one", 1), ("two", 2)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            SqueezeBertForMaskedLM(config).save_pretrained(tmp_path / name)
    one, two = tmp_path / "one", tmp_path / "two"
    done = merge(recipe("linear", {one: {"weight": [1, 0]}, two: {"weight": [0, 1]}}), tmp_path / "out")
    assert done.passed and done.verdict is not None and done.verdict.finite
    found = weights(tmp_path / "out")
    for number, model in enumerate((one, two)):
        own = {n: v for n, v in found.items() if f"layers.{number}." in n}
        assert own and all(torch.equal(values, weights(model)[name]) for name, values in own.items())
