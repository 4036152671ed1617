"""Budgets, refinement, task rows and bad input."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from kanna.calibration.windows import packed, padded
from kanna.checkpoint.loader import load
from kanna.errors import InputError
from kanna.forms import Dense, Form, LowRank, Pivot
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.ranks import curve_of, highest_rank
from kanna.methods.lowrank.run import lowrank
from kanna.methods.lowrank.survey import Survey
from kanna.models.matrix import Matrix, View
from kanna.runs.criteria import criteria_of
from kanna.runs.workspace import Workspace
from kanna.tasks.data.rows import Row

Base = Callable[[str], Path]
KEEPS = (0.2, 0.4, 0.6, 0.8, 0.9)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of a few hundred rows, grouped keys and values: ranks in steps of 8 fill a budget well."""
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=344, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=61, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    return tiny.save(model, tmp_path_factory.mktemp("larger") / "base")


@pytest.mark.parametrize("storage", ["pair", "pivot"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_budget_is_met_and_more_of_it_never_predicts_a_larger_loss(
    allocation: str, storage: str, larger: Path, text: Path, tmp_path: Path
) -> None:
    losses = []
    for keep in KEEPS:
        result = tiny.compress(
            larger, tmp_path / str(keep), text, tmp_path / "cache", keep=keep, align=8, method="whitened",
            allocation=allocation, storage=storage, outputs="equal",
        )  # fmt: skip
        plan, achieved = result.plan, result.figures["keep_selected"]
        assert keep - 0.005 <= achieved <= keep
        (first,) = (tmp_path / "cache/statistics").rglob("survey-000*")
        energies = Survey(Workspace(first.parent), (0, 1)).energies()
        curves = [curve_of(matrix, energies[matrix.name], plan.config) for matrix in plan.selected]
        ranks = {matrix.name: result.figures["ranks"].get(matrix.name) for matrix in plan.selected}
        cost, loss = 0, 0.0
        for curve in curves:
            rank = ranks[curve.name]
            cost += curve.dense_cost if rank is None else curve.cost[curve.ranks.index(rank)]
            loss += 0.0 if rank is None else float(curve.tails[rank])
            assert rank is None or (rank % 8 == 0 and curve.cost[curve.ranks.index(rank)] < curve.dense_cost)
        assert cost == round(achieved * plan.dense_parameters)
        losses.append(loss)
        assert result.figures["model_bytes_after"] < result.figures["model_bytes_before"]
    assert losses == sorted(losses, reverse=True)


def test_a_budget_that_cannot_be_reached_names_the_least(larger: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"smallest ranks allowed keep 0\.\d+"):
        tiny.compress(larger, tmp_path / "out", None, cache, keep=0.01, align=8, method="plain")
    assert list(tmp_path.iterdir()) == []


def test_refinement_brings_block_outputs_nearer(
    larger: Path, text: Path, cache: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"keep": 0.4, "align": 8, "method": "anchored", "allocation": "uniform"}
    outs = {steps: tmp_path / str(steps) for steps in (0, 60)}
    for steps, out in outs.items():
        assert tiny.compress(larger, out, text, cache, refine=steps, **settings).passed
    windows = naive.calibration(larger, text)
    base = block_outputs(tiny.whole(larger), windows.ids)
    bare, refined = (
        [float((a - b).square().mean()) for a, b in zip(block_outputs(model, windows.ids), base, strict=True)]
        for model, _ in (load(out, dtype=torch.float32) for out in outs.values())
    )
    assert all(after < before for after, before in zip(refined, bare, strict=True)), (refined, bare)
    before, after = (load_file(out / "model.safetensors") for out in outs.values())
    norms = [name for name in before if name.startswith("model.layers") and "norm" in name]
    assert norms and not any(before[name].equal(after[name]) for name in norms)
    assert before["model.norm.weight"].equal(after["model.norm.weight"])


def block_outputs(model: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    layers = model.model.layers  # type: ignore[union-attr]
    handles = [layer.register_forward_hook(lambda _, __, out: found.append(out)) for layer in layers]  # type: ignore[union-attr, func-returns-value]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


def test_refinement_needs_text(bases: Base, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration text"):
        tiny.compress(bases("llama"), tmp_path / "out", None, cache, keep=0.7, method="plain", refine=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.7}, "--method plain"),
        ({"keep": 0.7, "method": "plain", "allocation": "global"}, "gradients"),
    ],
)
def test_what_needs_text_says_so(
    settings: dict[str, Any], message: str, bases: Base, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        tiny.compress(bases("llama"), tmp_path / "out", None, cache, **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["whitened", "anchored"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_classifier"])
def test_task_rows_calibrate_too(name: str, method: str, bases: Base, cache: Path, tmp_path: Path) -> None:
    rows = [{"prompt": tiny.letters(5 + i % 9, i), "answer": tiny.letters(3, 99 + i)} for i in range(30)]
    rows += [{"prompt": tiny.letters(6), "choices": ["a", "b"], "label": i % 2} for i in range(10)]
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    result = tiny.compress(bases(name), out, file, cache, keep=0.7, method=method, refine=2)
    assert result.passed and result.verdict is not None and result.verdict.deviation is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "tensor", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_weights_that_are_not_numbers_are_named(
    tensor: str, value: float, text: Path, cache: Path, tmp_path: Path
) -> None:
    base = tiny.family("llama", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights[tensor].view(-1)[5] = value
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    for settings in ({"keep": 0.7}, {"keep": 0.7, "method": "plain"}):
        with pytest.raises(InputError, match=f"{tensor} holds 1 NaN or infinite"):
            tiny.compress(base, tmp_path / "out", text, cache, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("tensor", ["model.layers.1.input_layernorm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize(
    "settings", [{"method": "plain"}, {"method": "anchored", "allocation": "uniform"}, {}]
)
def test_a_missing_tensor_is_named(
    tensor: str, settings: dict[str, Any], text: Path, cache: Path, tmp_path: Path
) -> None:
    base = tiny.family("llama", tmp_path / "base")
    tiny.rename(base, lambda name: None if name == tensor else name)
    with pytest.raises(InputError, match=f"lacks the tensor {tensor}"):
        tiny.compress(base, tmp_path / "out", text, cache, keep=0.7, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_truncated_file_is_named(bases: Base, text: Path, cache: Path, tmp_path: Path) -> None:
    base = tiny.family("llama", tmp_path / "base")
    file = base / "model.safetensors"
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    file.write_bytes(data[: 8 + size + 100])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        tiny.compress(base, tmp_path / "out", text, cache, keep=0.7)


def test_too_little_text(bases: Base, cache: Path, tmp_path: Path) -> None:
    file = tiny.text(tmp_path / "short.jsonl", rows=5)
    with pytest.raises(InputError, match=r"\d+ tokens; at least 256"):
        tiny.compress(bases("llama"), tmp_path / "out", file, cache, keep=0.7)
    assert [path.name for path in tmp_path.iterdir()] == ["short.jsonl"]


def test_a_compressed_model_is_compressed_further(
    bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    tiny.compress(bases("llama"), tmp_path / "once", text, cache, keep=0.7)
    result = tiny.compress(tmp_path / "once", tmp_path / "twice", text, cache, keep=0.7)
    assert result.passed and 0.6 < result.figures["keep_selected"] <= 0.7
    assert result.figures["keep_selected_of_dense"] <= 0.49


def test_packed_windows_are_full_and_padded_ones_lose_nothing() -> None:
    tokenizer = tiny.tokenizer()
    rows = [Row(tiny.letters(30 + i, i)) for i in range(20)]
    windows = packed(rows, tokenizer, tokens=300, length=16, seed=0)
    assert windows.ids.shape == (300 // 16, 16) and not windows.padded
    assert packed(rows, tokenizer, 300, 1000, 0).ids.shape == (1, 300)
    assert not windows.ids.equal(packed(rows, tokenizer, 300, 16, seed=1).ids)
    one_long = padded([Row(tiny.letters(400))], tokenizer, tokens=512, length=64, seed=0)
    assert one_long.tokens == 400 and one_long.ids.shape == (7, 64)
    assert one_long.ids[one_long.mask].tolist() == tokenizer(tiny.letters(400))["input_ids"]


CASES = [((20, 30), Dense()), ((30, 20), Dense()), ((1, 5), Dense()), ((2, 2), Dense())]
CASES += [((20, 30), LowRank(9)), ((20, 30), Pivot(9)), ((30, 20), LowRank(9)), ((30, 20), Pivot(9))]


@pytest.mark.parametrize("storage", ["pair", "pivot"])
@pytest.mark.parametrize(("shape", "form"), CASES)
def test_the_highest_rank_is_the_last_that_saves_something(
    shape: tuple[int, int], form: Form, storage: Any
) -> None:
    m, n = shape
    matrix = Matrix("a", "a", "weight", 0, "q", m, n, View(), False)
    config, highest = LowRankConfig(keep=0.5, storage=storage), min(m, n, getattr(form, "rank", m))
    if storage == "pivot":
        costs = {k: Pivot(k).parameters(m, n) for k in range(1, highest + 1) if k < min(m, n + 1)}
    else:
        costs = {k: LowRank(k).parameters(m, n) for k in range(1, highest + 1)}
    saving = [k for k, cost in costs.items() if cost < form.parameters(m, n)]
    assert highest_rank(matrix, config, form) == max(saving, default=0)


def test_tokens_that_the_model_has_no_embeddings_of_are_named(
    bases: Base, cache: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(bases("llama"), tmp_path / "base")
    words = transformers.AutoTokenizer.from_pretrained(base)
    words.add_tokens(["<extra>"])
    words.save_pretrained(base)
    text = tmp_path / "text.jsonl"
    rows = [{"text": tiny.letters(30, i)} for i in range(40)]
    text.write_text("\n".join(map(json.dumps, [*rows, {"text": "<extra>"}])))
    with pytest.raises(InputError, match=r"'<extra>' has the id"):
        tiny.compress(base, tmp_path / "out", text, cache, keep=0.7, tokens=100_000)


def test_padding_that_it_has_no_embedding_of_hurts_nobody(bases: Base, cache: Path, tmp_path: Path) -> None:
    base = shutil.copytree(bases("bert_mlm"), tmp_path / "base")
    rows = [{"text": tiny.letters(5 + i % 9, i)} for i in range(60)]
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(map(json.dumps, rows)))
    outs = []
    for name in ("before", "after"):
        tiny.compress(base, tmp_path / name, text, cache, keep=0.7)
        outs.append(load_file(tmp_path / name / "model.safetensors"))
        words = transformers.AutoTokenizer.from_pretrained(base)
        words.add_special_tokens({"pad_token": "<far>"})
        words.save_pretrained(base)
    assert outs[0].keys() == outs[1].keys()


def test_calibration_on_the_rows_that_judge_is_told(bases: Base, tmp_path: Path) -> None:
    rows = [{"prompt": tiny.letters(5 + i % 9, i), "answer": tiny.letters(3, 99 + i)} for i in range(60)]
    for name, some in (("task.jsonl", rows[:40]), ("other.jsonl", rows[20:])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, some)))
    criteria = criteria_of(str(tmp_path / "task.jsonl"), "5pt")
    for name, told in (("task.jsonl", True), ("other.jsonl", False)):
        config = LowRankConfig(keep=0.7, align=1)
        text = tmp_path / name
        result = lowrank(bases("llama"), None, config, calibration=text, criteria=criteria, dry_run=True)
        assert any("flatters" in note for note in result.plan.notes) is told


@pytest.mark.parametrize(
    ("keep", "method", "told"), [(0.4, None, True), (0.4, "anchored", False), (0.6, None, False)]
)
def test_another_method_than_at_a_larger_keep_is_told(
    keep: float, method: Any, told: bool, bases: Base, text: Path, tmp_path: Path
) -> None:
    result = tiny.compress(
        bases("llama"), tmp_path / "out", text, tmp_path / "cache", keep=keep, method=method, dry_run=True
    )
    assert any("--method whitened" in note for note in result.plan.notes) is told
