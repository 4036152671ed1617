"""Skeletons from files, and the errors for files that describe nothing we can build."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_configs import config

from kanna.errors import InputError
from kanna.models.skeleton import read_config, skeleton


def written(directory: Path, **changes: Any) -> Path:
    entries = json.loads(config("llama").to_json_string(use_diff=False)) | changes
    (directory / "config.json").write_text(
        json.dumps({key: value for key, value in entries.items() if value is not None})
    )
    return directory


def test_nothing_is_allocated(tmp_path: Path) -> None:
    built = skeleton(written(tmp_path, dtype="bfloat16"))
    assert type(built).__name__ == "LlamaForCausalLM"
    assert {p.device.type for p in built.parameters()} == {"meta"}
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16}


def test_the_file_itself_will_do(tmp_path: Path) -> None:
    directory = written(tmp_path)
    assert read_config(directory / "config.json").to_dict() == read_config(directory).to_dict()


def test_configuration_of_a_compressed_model(tmp_path: Path) -> None:
    """The skeleton is that of the dense model, whatever forms the checkpoint declares."""
    declared = {"quant_method": "kanna", "format_version": 1, "forms": {}}
    built = skeleton(written(tmp_path, quantization_config=declared))
    assert type(built.get_submodule("model.layers.0.mlp.up_proj")) is torch.nn.Linear


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLMs"]}, ["'LlamaForCausalLMs'", "LlamaForCausalLM"]),
        ({"architectures": ["nn"]}, ["unknown architecture 'nn'"]),
        ({"architectures": []}, ["`architectures` is missing", "LlamaForCausalLM"]),
        ({"architectures": None}, ["`architectures` is missing", "LlamaForCausalLM"]),
        ({"architectures": ["OwnForNothing"]}, ["unknown architecture 'OwnForNothing'"]),
        ({"model_type": "lama"}, ["unknown model_type 'lama'", "llama"]),
        ({"model_type": None}, ["unknown model_type 'None'"]),
        ({"model_type": ["llama"]}, ["unknown model_type"]),
        ({"model_type": "own", "auto_map": {"AutoConfig": "x.Y"}}, ["code of its own", "'own'"]),
        ({"hidden_act": "nothing"}, ["cannot build LlamaForCausalLM", "nothing"]),
        ({"hidden_size": "wide"}, ["hidden_size"]),
    ],
)
def test_errors(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        skeleton(written(tmp_path, **changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.remedy


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        skeleton(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        skeleton(tmp_path)


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("WhisperForConditionalGeneration", "audio"),
        ("CLIPModel", "image"),
        ("ViTForImageClassification", "image"),
    ],
)
def test_classes_that_cannot_run_on_text_are_refused_by_name(name: str, reads: str) -> None:
    architecture = getattr(transformers, name)
    settings = architecture.config_class(architectures=[name])
    with pytest.raises(InputError, match=f"{name} reads {reads}"):
        skeleton(settings)


@pytest.mark.parametrize("written", ['{"__float__": "Infinity"}', "Infinity"])
def test_an_infinite_number(tmp_path: Path, written: str) -> None:
    """As transformers writes it, and as Python's own JSON does."""
    transformers.Mamba2Config(architectures=["Mamba2ForCausalLM"]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    entries = json.loads(file.read_text()) | {"time_step_limit": [0.0, "HERE"]}
    file.write_text(json.dumps(entries).replace('"HERE"', written))
    assert read_config(tmp_path).time_step_limit[1] == float("inf")


def test_a_byte_order_mark_is_named(tmp_path: Path) -> None:
    file = written(tmp_path) / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    with pytest.raises(InputError, match="without a byte order mark"):
        read_config(tmp_path)
