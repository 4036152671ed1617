"""Families that share blocks, read positions or have no head: factors are optimal for what is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kanna.calibration.windows import Windows
from kanna.errors import InputError
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.run import laser_apply
from kanna.models.views import read

Base = Callable[[str], Path]
PURE: dict[str, Any] = {
    "keep": 0.6, "method": "whitened", "allocation": "uniform", "outputs": "equal", "ridge": 0.0,
    "bias_correction": False, "batch": 1,
}  # fmt: skip


def read_by(model: nn.Module, windows: Windows) -> dict[str, Tensor]:
    """Path -> (rows, n) float64: all that every linear layer reads in all its calls, sequence by sequence."""
    rows: dict[str, list[Tensor]] = {}

    def note(path: str, inputs: Tensor) -> None:
        rows.setdefault(path, []).append(inputs.reshape(-1, inputs.shape[-1]).double())

    layers = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    hooks = [m.register_forward_pre_hook(lambda _, args, p=p: note(p, args[0])) for p, m in layers]
    with torch.no_grad():
        for ids, mask in zip(windows.ids, windows.mask, strict=True):
            model(ids[mask][None])
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(some) for path, some in rows.items()}


@pytest.mark.parametrize("name", ["albert", "mobilebert", "deberta_v1", "deberta_v2", "t5_encoder", "funnel"])
def test_factors_are_the_best_for_all_that_is_read_in_every_call(
    name: str, bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    result = tiny.compress(bases(name), tmp_path / "out", text, cache, **PURE)
    assert result.passed, result.verdict
    base, after = tiny.whole(bases(name)), tiny.loaded(tmp_path / "out")
    x = read_by(base, naive.calibration(bases(name), text))
    checked = 0
    for matrix in result.plan.selected:
        rank = result.figures["ranks"].get(matrix.name)
        if rank is None:
            continue
        weight = read(base.get_submodule(matrix.module).weight.detach(), matrix.view).double()  # type: ignore[union-attr, operator, arg-type]
        outputs = x[matrix.module] @ weight.T
        best = float(torch.linalg.svdvals(outputs)[rank:].square().sum())
        lost = float((outputs - x[matrix.module] @ tiny.product(after, matrix.module).T).square().sum())
        assert lost == pytest.approx(best, rel=1e-4, abs=1e-8 * float(outputs.square().sum())), matrix.name
        checked += 1
    assert checked


@pytest.mark.parametrize("way", ["default", "anchored", "refined"])
@pytest.mark.parametrize("name", ["albert", "deberta_v2", "gemma3n", "recurrent_gemma", "mamba", "xlnet"])
def test_what_is_written_computes_what_was_computed(
    name: str, way: str, bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    settings = {"default": {"keep": 0.6}, "anchored": {"keep": 0.45}, "refined": {"keep": 0.6, "refine": 2}}[
        way
    ]
    if name == "albert" and way == "refined":
        with pytest.raises(InputError, match="runs a block several times"):
            tiny.compress(bases(name), tmp_path / "out", text, cache, **settings)
        assert not (tmp_path / "out").exists()
        return
    result = tiny.compress(bases(name), tmp_path / "out", text, cache, **settings)
    assert result.passed, result.verdict
    assert result.verdict is not None and result.verdict.deviation is not None
    assert result.figures["matrices_replaced"]


@pytest.mark.parametrize(("name", "layer"), [("mamba", "dt_proj"), ("recurrent_gemma", "linear_x")])
def test_layers_that_the_model_reads_stay_dense_and_are_named(
    name: str, layer: str, bases: Base, cache: Path, tmp_path: Path
) -> None:
    result = tiny.compress(bases(name), tmp_path / "out", None, cache, rank=2, method="plain")
    assert result.passed, result.verdict
    before, after = (load_file(p / "model.safetensors") for p in (bases(name), tmp_path / "out"))
    kept = [tensor for tensor in before if f"{layer}.weight" in tensor]
    assert kept and all(before[tensor].equal(after[tensor]) for tensor in kept)
    assert any("own code reads" in note and "left dense" in note for note in result.plan.notes)
    with pytest.raises(InputError, match="own code reads"):
        tiny.compress(bases(name), tmp_path / "none", None, cache, rank=2, method="plain", select=layer)


@pytest.mark.parametrize("name", ["bert_model", "bert_qa", "mistral_model", "t5_encoder"])
def test_without_a_loss_ranks_are_even_and_outputs_weigh_the_same(
    name: str, bases: Base, text: Path, cache: Path, tmp_path: Path
) -> None:
    result = tiny.compress(bases(name), tmp_path / "out", text, cache, keep=0.6)
    assert result.passed, result.verdict
    config = result.plan.config
    assert (config.method, config.allocation, config.outputs) == ("whitened", "uniform", "equal")
    assert any("no loss" in note for note in result.plan.notes)
    for wish in ({"allocation": "global"}, {"outputs": "gradient"}, {"method": "fwsvd"}):
        with pytest.raises(InputError, match="no logits and so no loss"):
            tiny.compress(bases(name), tmp_path / "other", text, cache, keep=0.6, **wish)


class Interrupted(Exception):
    """Raised by a progress callback, as Ctrl-C would be."""


@pytest.mark.parametrize("stage", ["survey", "replace"])
def test_a_model_that_runs_itself_is_gone_on_with(
    stage: str, bases: Base, text: Path, tmp_path: Path
) -> None:
    settings = {"keep": 0.5, "method": "anchored", "refine": 2}
    tiny.compress(bases("deberta_v2"), tmp_path / "a/out", text, tmp_path / "one", **settings)

    def stop(found: str, done: int, total: int) -> None:
        if (found, done) == (stage, 2):
            raise Interrupted

    out, cache = tmp_path / "b/out", tmp_path / "two"
    with pytest.raises(Interrupted):
        tiny.compress(bases("deberta_v2"), out, text, cache, progress=stop, **settings)
    tiny.compress(bases("deberta_v2"), out, text, cache, resume=True, **settings)
    assert tiny.hashes(tmp_path / "a/out") == tiny.hashes(out)


def test_edits_in_factors_leave_them_dense_too(bases: Base, tmp_path: Path) -> None:
    config = LaserConfig(edits=("dt_proj@0:k=2", "x_proj@0:k=2"), factored=True)
    result = laser_apply(bases("mamba"), tmp_path / "out", config)
    assert result.passed, result.verdict
    factored = [one.matrix.role for one in result.plan.reductions if one.factored]
    assert factored == ["x_proj"]
    assert any("dt_proj stays dense" in note for note in result.plan.notes)
