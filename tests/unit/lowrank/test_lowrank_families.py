"""The whole way, from a model directory to a smaller one that reloads, for every family."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import family_configs
import pytest
import tiny
import torch
from exported import dense
from safetensors.torch import load_file

from kanna.checkpoint.loader import load
from kanna.checkpoint.reader import Checkpoint
from kanna.forms import from_json
from kanna.runs.runner import RunResult

Base = Callable[[str], Path]

WAYS: dict[str, dict[str, Any]] = {
    "whitened": {"keep": 0.7, "method": "whitened"},
    "anchored": {"keep": 0.7, "method": "anchored", "allocation": "uniform", "storage": "pivot"},
}
MORE_WAYS: dict[str, dict[str, Any]] = {
    "default": {"keep": 0.7},
    "whitened-pivot": {"keep": 0.6, "method": "whitened", "allocation": "uniform", "storage": "pivot"},
    "anchored-pivot-global": {"keep": 0.7, "method": "anchored", "storage": "pivot"},
    "anchored-pair": {"keep": 0.7, "method": "anchored", "allocation": "uniform"},
    "plain": {"keep": 0.7, "method": "plain"},
    "asvd": {"keep": 0.7, "method": "asvd"},
    "fwsvd": {"keep": 0.7, "method": "fwsvd"},
    "rank": {"rank": 2, "select": "all@0,2", "method": "whitened"},
    "anchored-rank": {"rank": 2, "select": "attn@1", "method": "anchored"},
    "refined": {"keep": 0.7, "refine": 3},
}
CASES = [(name, way) for name in family_configs.FAMILIES for way in WAYS]
CASES += [("llama", way) for way in MORE_WAYS]
CASES += [("gpt2", "anchored-pivot-global"), ("gpt2", "anchored-pair"), ("gpt2", "refined")]
CASES += [("bert_mlm", "default"), ("bert_mlm", "refined"), ("phi3", "refined")]

RELOAD = """
import json, sys
import kanna, torch, transformers
from safetensors.torch import save_file
torch.set_num_threads(int(sys.argv[2]))
ids = torch.arange(3, 15)[None]
found = {}
for name, directory in json.load(sys.stdin).items():
    kind = json.load(open(directory + "/config.json"))["architectures"][0]
    model = getattr(transformers, kind).from_pretrained(directory, dtype="auto")
    with torch.no_grad():
        found[name] = model(ids).logits.contiguous()
save_file(found, sys.argv[1])
"""


@dataclass(frozen=True)
class Run:
    base: Path
    out: Path
    result: RunResult

    @cached_property
    def logits(self) -> torch.Tensor:
        return logits(self.out)


@pytest.fixture(scope="module")
def runs(
    bases: Base, text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Run]:
    """The run of a family in a way; made once."""
    root, made = tmp_path_factory.mktemp("out"), {}

    def run(name: str, way: str) -> Run:
        if (name, way) not in made:
            out = root / f"{name}-{way}"
            result = tiny.compress(bases(name), out, text, cache, **(WAYS | MORE_WAYS)[way])
            made[name, way] = Run(bases(name), out, result)
        return made[name, way]

    return run


@pytest.mark.parametrize(("name", "way"), CASES)
def test_it_ends_with_a_passed_verdict_and_the_promised_size(
    name: str, way: str, runs: Callable[[str, str], Run]
) -> None:
    run = runs(name, way)
    verdict, figures = run.result.verdict, run.result.figures
    assert verdict is not None and verdict.passed and verdict.finite, verdict
    assert verdict.deviation is not None and verdict.deviation <= 1e-5
    config = run.result.plan.config
    assert config.keep is None or figures["keep_selected"] <= config.keep
    assert figures["keep_selected"] == counted(run) / run.result.plan.dense_parameters
    written = load_file(run.out / "model.safetensors")
    assert figures["model_bytes_after"] == sum(t.numel() * t.element_size() for t in written.values())
    assert figures["model_bytes_after"] < figures["model_bytes_before"]
    assert all(t.isfinite().all() for t in written.values() if t.is_floating_point())
    assert not run.out.with_name(run.out.name + ".kanna-work").exists()


def counted(run: Run) -> int:
    """Parameters of the selected matrices under the forms of config.json; without one they are dense."""
    plan = run.result.plan
    declared = json.loads((run.out / "config.json").read_text())["quantization_config"]["forms"]
    kept = {matrix.module: 0 for matrix in plan.selected}
    for matrix in plan.selected:
        kept[matrix.module] += matrix.parameters
    for module, form in declared.items():
        shape = (
            sum(m.out_features for m in plan.inventory.matrices if m.module == module),
            matrix_width(run, module),
        )
        kept[module] = from_json(form).parameters(*shape)
    return sum(kept.values())


def matrix_width(run: Run, module: str) -> int:
    return next(m.in_features for m in run.result.plan.inventory.matrices if m.module == module)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_everything_else_is_bit_identical(name: str, way: str, runs: Callable[[str, str], Run]) -> None:
    run = runs(name, way)
    before, after = load_file(run.base / "model.safetensors"), load_file(run.out / "model.safetensors")
    forms = json.loads((run.out / "config.json").read_text())["quantization_config"]["forms"]
    for tensor, value in before.items():
        module = tensor.rpartition(".")[0]
        refined = way == "refined" and "norm" in module.rpartition(".")[2].lower().replace("ln_", "norm")
        if not any(module == path or path.endswith(f".{module}") for path in forms) and not refined:
            assert after[tensor].equal(value), tensor


@pytest.mark.parametrize(("name", "way"), CASES)
def test_multiplied_out_it_computes_the_same(
    name: str, way: str, runs: Callable[[str, str], Run], tmp_path: Path
) -> None:
    run = runs(name, way)
    dense(run.out, tmp_path / "dense")
    got, expected = run.logits, logits(tmp_path / "dense")
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_new_process_gives_identical_logits(runs: Callable[[str, str], Run], tmp_path: Path) -> None:
    made = {f"{name}/{way}": runs(name, way) for name, way in CASES}
    outputs = {key: str(run.out) for key, run in made.items()}
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-c", RELOAD, str(tmp_path / "logits.safetensors"), threads]
    subprocess.run(command, input=json.dumps(outputs), text=True, check=True, capture_output=True)
    reloaded = load_file(tmp_path / "logits.safetensors")
    for key, run in made.items():
        assert run.logits.equal(reloaded[key]), key


def logits(directory: Path) -> torch.Tensor:
    model, _ = load(directory)
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 15)[None]).logits
    return found


@pytest.mark.parametrize("name", family_configs.FAMILIES)
def test_keep_1_changes_nothing(name: str, bases: Base, text: Path, cache: Path, tmp_path: Path) -> None:
    result = tiny.compress(bases(name), tmp_path / "out", text, cache, keep=1.0, allocation="global")
    before, after = (
        load_file(bases(name) / "model.safetensors"),
        load_file(tmp_path / "out/model.safetensors"),
    )
    assert list(before) == list(after)
    assert all(before[tensor].equal(after[tensor]) for tensor in before)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert result.passed and result.figures["keep_selected"] == 1.0


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_are_left_alone_and_named(name: str, runs: Callable[[str, str], Run]) -> None:
    plan = runs(name, "whitened").result.plan
    assert plan.inventory.refused and not any("experts" in matrix.module for matrix in plan.selected)
    assert any("left out" in note for note in plan.notes)
    checkpoint = Checkpoint.open(runs(name, "whitened").out)
    assert any(".experts." in tensor for tensor in checkpoint.tensors)


def test_a_rank_that_saves_nothing_leaves_a_matrix_dense(bases: Base, cache: Path, tmp_path: Path) -> None:
    # q and o are 24 x 24 and save up to rank 11; k and v are 8 x 24 and save up to rank 5.
    result = tiny.compress(
        bases("llama"), tmp_path / "out", None, cache, rank=8, select="attn", method="plain"
    )
    assert set(result.figures["ranks"]) == {m.name for m in result.plan.selected if m.role in "qo"}
    assert result.passed


def test_nearly_full_rank_nearly_reproduces_the_logits(bases: Base, cache: Path, tmp_path: Path) -> None:
    # At pivot storage the last rank that still saves leaves out the smallest direction or two only.
    for name in ("llama", "gpt2", "gpt_neox"):
        out = tmp_path / name
        tiny.compress(bases(name), out, None, cache, keep=0.999, method="plain", storage="pivot")
        expected, got = logits(bases(name)), logits(out)
        assert float((got - expected).norm() / expected.norm()) < 0.15, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("method", ["whitened", "anchored"])
def test_the_dtype_of_the_source_is_kept(
    dtype: torch.dtype, method: str, text: Path, cache: Path, tmp_path: Path
) -> None:
    for name in ("llama", "gptj") if dtype == torch.bfloat16 else ("llama",):
        base = tiny.family(name, tmp_path / name, dtype=dtype)
        out = tmp_path / f"{name}-out"
        result = tiny.compress(base, out, text, cache, keep=0.7, method=method, storage="pivot", refine=2)
        written = load_file(out / "model.safetensors")
        assert {t.dtype for t in written.values() if t.is_floating_point()} == {dtype}
        assert {t.dtype for t in written.values() if not t.is_floating_point()} == {torch.int32}
        assert result.passed, result.verdict


def test_shards_in_one_file_out(text: Path, cache: Path, tmp_path: Path) -> None:
    whole = tiny.family("llama", tmp_path / "whole")
    shards = tiny.family("llama", tmp_path / "shards", max_shard_size="10KB")
    outs = [tmp_path / "from-whole", tmp_path / "from-shards"]
    for base, out in zip((whole, shards), outs, strict=True):
        tiny.compress(base, out, text, cache, keep=0.7)
    first, second = (load_file(out / "model.safetensors") for out in outs)
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_tied_embeddings_stay_one_tensor(text: Path, cache: Path, tmp_path: Path, bases: Base) -> None:
    base = bases("qwen2")
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    tiny.compress(base, tmp_path / "out", text, cache, keep=0.5)
    written = load_file(tmp_path / "out/model.safetensors")
    assert not any("lm_head" in name for name in written)
    embeddings = "model.embed_tokens.weight"
    assert written[embeddings].equal(load_file(base / "model.safetensors")[embeddings])
    model, _ = load(tmp_path / "out")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_files_without_the_prefix_of_the_class(text: Path, cache: Path, tmp_path: Path, bases: Base) -> None:
    base = tiny.family("gpt2", tmp_path / "gpt2")
    tiny.rename(base, lambda name: name.removeprefix("transformer."))
    outs = [tmp_path / "bare", tmp_path / "prefixed"]
    for source, out in zip((base, bases("gpt2")), outs, strict=True):
        assert tiny.compress(source, out, text, cache, keep=0.7).passed
    assert logits(outs[0]).equal(logits(outs[1]))
    assert not any(name.startswith("transformer.") for name in load_file(outs[0] / "model.safetensors"))


def test_predicted_parameters_are_the_parameters_of_the_model(runs: Callable[[str, str], Run]) -> None:
    run = runs("llama", "anchored")
    model, _ = load(run.out)
    held = sum(
        math.prod(p.shape) for name, p in model.named_parameters() if ".basis." in name or ".mix." in name
    )
    order = sum(b.numel() for name, b in model.named_buffers() if name.endswith(".order"))
    dense_left = sum(
        m.parameters for m in run.result.plan.selected if m.name not in run.result.figures["ranks"]
    )
    kept = (held + order + dense_left) / run.result.plan.dense_parameters
    assert kept == pytest.approx(run.result.figures["keep_selected"], abs=1e-12)
