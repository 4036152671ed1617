"""Models that cannot be worked on are refused while nothing has been done."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import kanna
from kanna.errors import InputError


@pytest.fixture
def base(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model that a test may damage."""
    copy = tmp_path / "base"
    copy.mkdir()
    for file in bases("llama").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def refused(base: Path, word: str) -> None:
    """Nothing is planned, and a dry run says so too."""
    for dry in (True, False):
        with pytest.raises(InputError, match=word):
            tiny.compress(
                base, base.parent / "out", None, base.parent / "cache", keep=0.5, method="plain", dry_run=dry
            )
    with pytest.raises(InputError, match=word):
        kanna.laser_apply(base, base.parent / "out", kanna.LaserConfig(edits=("mlp_out:-1:k=3",)))
    assert not (base.parent / "out").exists()


def test_a_head_that_the_files_do_not_hold(base: Path) -> None:
    file = base / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"architectures": ["LlamaForSequenceClassification"]})
    )
    refused(base, "lacks the tensor score.weight")


def test_weights_of_eight_bits(base: Path) -> None:
    file = base / "model.safetensors"
    tensors = {
        name: value.to(torch.float8_e4m3fn) if name.endswith("up_proj.weight") else value
        for name, value in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    refused(base, "already quantized: .*F8_E4M3")
    with pytest.raises(InputError, match="F8_E4M3"):
        kanna.load(base)


def test_infinity_in_a_configuration_stays_json_for_everybody(base: Path) -> None:
    file = base / "config.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps(entries | {"own_limits": [0.0, float("inf")]}))
    tiny.compress(base, base.parent / "out", None, base.parent / "cache", keep=0.5, method="plain")
    text = (base.parent / "out" / "config.json").read_text()
    assert json.loads(text)["own_limits"] == [0.0, {"__float__": "Infinity"}]
    edit = kanna.LaserConfig(edits=("mlp_out:-1:k=3",), keep_originals=True)
    kanna.laser_apply(base, base.parent / "edited", edit)
    restored = kanna.laser_restore(base.parent / "edited", base.parent / "restored")
    assert kanna.load(restored)[0].config.own_limits[1] == float("inf")


def test_a_class_named_by_own_code_is_compressed(base: Path) -> None:
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["LLaMAForCausalLM"]}))
    done = tiny.compress(
        base, base.parent / "out", tiny.text(base.parent / "t.jsonl"), base.parent / "cache", keep=0.5
    )
    assert done.passed
