"""Matrices, inputs and gradients that are zero, constant or of few directions: their factors are numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from kanna.calibration.statistics import InputStatistics
from kanna.errors import InputError
from kanna.methods.lowrank.gradients import OutputGradients, check_gradients

WAYS: dict[str, dict[str, Any]] = {
    "default": {"keep": 0.6},
    "anchored": {"keep": 0.4},
    "equal": {"keep": 0.6, "outputs": "equal", "allocation": "uniform"},
    "asvd": {"keep": 0.6, "method": "asvd"},
    "fwsvd": {"keep": 0.6, "method": "fwsvd"},
    "pivot": {"keep": 0.6, "storage": "pivot"},
    "refined": {"keep": 0.6, "refine": 2},
}


def changed(base: Path, out: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a model with other weights."""
    out.mkdir()
    for file in base.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    named = load_file(base / "model.safetensors")
    save_file({name: change(name, t).contiguous() for name, t in named.items()}, out / "model.safetensors")
    return out


def passed_by(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A block that depth expansion put in: nothing that it computes reaches its outputs, nor any gradient."""
    silent = "layers.1." in name and ("o_proj" in name or "down_proj" in name)
    return torch.zeros_like(tensor) if silent else tensor


def one_direction(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :1] @ tensor[:1] if "layers.1." in name and tensor.dim() == 2 else tensor


def one_input(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """All tokens look alike, so that inputs of the first block do not vary."""
    return tensor[:1].expand_as(tensor) if "embed" in name else tensor


CASES = [(passed_by, way) for way in WAYS]
CASES += [(change, way) for change in (one_direction, one_input) for way in ("default", "anchored")]


@pytest.mark.parametrize(("change", "way"), CASES)
def test_what_is_degenerate_is_factored_like_anything_else(
    change: Callable[[str, torch.Tensor], torch.Tensor],
    way: str,
    bases: Callable[[str], Path],
    text: Path,
    tmp_path: Path,
) -> None:
    base = changed(bases("llama"), tmp_path / "base", change)
    result = tiny.compress(base, tmp_path / "out", text, tmp_path / "cache", **WAYS[way])
    assert result.passed, result.verdict
    written = load_file(tmp_path / "out/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in written.values())
    if change is passed_by:
        hidden = {m.name for m in result.plan.selected if m.layer == 1 and m.role not in ("o", "down")}
        weighed = result.plan.config.needs_gradients
        assert set(result.figures.get("without_gradient", ())) == (hidden if weighed else set())


def test_matrices_that_nobody_feels_get_the_plain_optimum_of_their_inputs(
    bases: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    base = changed(bases("llama"), tmp_path / "base", passed_by)
    settings = {"keep": 0.6, "method": "whitened", "ridge": 0.0, "bias_correction": False}
    result = tiny.compress(base, tmp_path / "out", text, tmp_path / "cache", **settings)
    found, windows = result.plan.inventory, naive.calibration(base, text)
    x = naive.inputs(tiny.whole(base), found.compressible, windows)
    before = naive.weights(base, found)
    after = tiny.loaded(tmp_path / "out")
    for name in result.figures["without_gradient"]:
        rank = result.figures["ranks"].get(name)
        if rank is None:
            continue
        outputs = x[name] @ before[name][0].T
        best = float(torch.linalg.svdvals(outputs)[rank:].square().sum())
        lost = float((outputs - x[name] @ tiny.product(after, name).T).square().sum())
        assert lost == pytest.approx(best, rel=1e-4, abs=1e-9 * float(outputs.square().sum()))


def test_of_inputs_that_do_not_vary_nothing_is_left_but_rounding() -> None:
    row = torch.rand(1, 6, generator=torch.Generator().manual_seed(0)) * 100
    constant, varying = InputStatistics.empty(6, "cpu"), InputStatistics.empty(6, "cpu")
    constant.add(row.expand(500, 6))
    varying.add(row + 0.5 * torch.randn(500, 6, generator=torch.Generator().manual_seed(1)))
    assert not constant.centred_gram.any()
    assert torch.linalg.eigvalsh(varying.centred_gram).min() > 50


def test_gradients_that_overflow_are_refused_before_anything_is_decomposed() -> None:
    sums = {"model.layers.0.mlp.up_proj": OutputGradients(torch.tensor([1.0, torch.inf]), torch.zeros(2), 3)}
    with pytest.raises(InputError, match=r"mlp\.up_proj are not finite(.|\n)*--outputs equal"):
        check_gradients(sums)
