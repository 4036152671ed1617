"""What was written, read back one block at a time: the same verdict as of the whole model."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from kanna.calibration.walker import Walker
from kanna.calibration.windows import random_windows
from kanna.checkpoint.reader import Checkpoint
from kanna.runs import probe
from kanna.runs.step import Recorded


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("written")
    base = tiny.family("llama", room / "base")
    tiny.compress(base, room / "out", tiny.text(room / "text.jsonl"), room / "cache", keep=0.7)
    return room / "out"


def recorded(written: Path) -> Recorded:
    _, inventory = tiny.opened(written.parent / "base")
    windows = random_windows(20, 12, 0)
    model = tiny.loaded(written).float()
    with torch.no_grad(), probe.block_outputs(model, inventory) as seen:
        model(windows.ids)
    return Recorded(windows, dict(enumerate(seen)))


def walker_of(directory: Path, written: Path) -> Walker:
    _, inventory = tiny.opened(written.parent / "base")
    return Walker(Checkpoint.open(directory), inventory)


def test_it_passes_what_is_right(written: Path) -> None:
    verdict = probe.by_block(walker_of(written, written), recorded(written))
    assert verdict.passed and verdict.finite
    assert verdict.deviation is not None and verdict.deviation < 1e-5


@pytest.mark.parametrize("what", ["block", "nan", "head"])
def test_it_fails_what_is_wrong(what: str, written: Path, tmp_path: Path) -> None:
    states = recorded(written)
    shutil.copytree(written, tmp_path / "broken")
    file = tmp_path / "broken/model.safetensors"
    tensors = load_file(file)
    name = {
        "block": next(name for name in tensors if "layers.1.mlp" in name),
        "nan": next(name for name in tensors if "layers.2" in name and "norm" in name),
        "head": "lm_head.weight",
    }[what]
    tensors[name] = tensors[name] * (1.1 if what == "block" else float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    verdict = probe.by_block(walker_of(tmp_path / "broken", written), states)
    assert not verdict.passed and verdict.finite is (what == "block")


def test_a_model_that_does_not_fit_is_read_back_so(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, inventory = tiny.opened(written.parent / "base")
    monkeypatch.setattr(probe, "LARGE", 0)
    verdict, model = probe.verify_output(
        written, inventory, recorded(written), inventory.parameters, wanted=False
    )
    assert verdict.passed and model is None
    verdict, model = probe.verify_output(written, inventory, None, 10**15)
    assert verdict.passed and model is None and checkpoint.bytes


def test_what_has_no_logits_or_other_scales_is_read_back_whole(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block there is no such head, and no set of scales over the model."""
    monkeypatch.setattr(probe, "LARGE", 0)
    base = tiny.family("mistral_model", tmp_path / "base")
    result = tiny.compress(
        base, tmp_path / "out", tiny.text(tmp_path / "t.jsonl"), tmp_path / "cache", keep=0.7
    )
    assert result.passed
    _, inventory = tiny.opened(written.parent / "base")
    monkeypatch.setattr(probe, "chosen", lambda *_: written)
    _, model = probe.verify_output(written, inventory, None, inventory.parameters, wanted=False)
    assert model is not None
