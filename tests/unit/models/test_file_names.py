"""Names of parameters in the files, against what transformers reports when it loads them."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from family_configs import config, model
from safetensors.torch import load_file, save_file
from wrappers import WRAPPERS, wrapper

from kanna.checkpoint.reader import Checkpoint
from kanna.models.names import FileNames
from kanna.models.skeleton import skeleton
from kanna.runs.source import Source


def names_of(directory: Path) -> FileNames:
    return FileNames.of(skeleton(directory), Checkpoint.open(directory).tensors)


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_parameter_of_a_wrapper_is_found_and_is_that_tensor(name: str, tmp_path: Path) -> None:
    real = wrapper(name)
    real.save_pretrained(tmp_path)
    names, tensors = names_of(tmp_path), load_file(tmp_path / "model.safetensors")
    assert names.missing == ()
    for parameter, value in real.named_parameters():
        if parameter not in names.made:
            assert torch.equal(tensors[names.get(parameter) or ""], value), parameter
    assert any(names.get(parameter) != parameter for parameter, _ in real.named_parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bert_classifier", "qwen2"])
@pytest.mark.parametrize("left_out", [None, "embed", "norm", "layers.1."])
def test_missing_is_what_transformers_reports(name: str, left_out: str | None, tmp_path: Path) -> None:
    real = model(name)
    real.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if left_out is None or left_out not in key}
    save_file(kept, file, {"format": "pt"})
    _, report = type(real).from_pretrained(tmp_path, output_loading_info=True)
    assert set(names_of(tmp_path).missing) == report["missing_keys"]


def test_of_tied_weights_either_name_will_do(tmp_path: Path) -> None:
    model("qwen2").save_pretrained(tmp_path)
    assert names_of(tmp_path).get("lm_head.weight") == "model.embed_tokens.weight"


@pytest.mark.parametrize("same", [True, False])
def test_a_head_of_its_own_is_counted_though_the_config_ties_it(same: bool, tmp_path: Path) -> None:
    real = model("llama")
    real.save_pretrained(tmp_path)
    file, entries = tmp_path / "model.safetensors", tmp_path / "config.json"
    entries.write_text(json.dumps(json.loads(entries.read_text()) | {"tie_word_embeddings": True}))
    if same:
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, file, {"format": "pt"})
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    found = Source.open(tmp_path).inventory
    assert found.tied_embeddings is same
    assert found.parameters == sum(parameter.numel() for parameter in loaded.parameters())


def test_a_class_named_by_own_code(tmp_path: Path) -> None:
    """Its files are found all the same, and the class is that which transformers' Auto class chooses."""
    real = model("llama")
    real.save_pretrained(tmp_path)
    entries = tmp_path / "config.json"
    for name in ("LLaMAForCausalLM", "OwnLMHeadModel"):
        changed = json.loads(entries.read_text()) | {"architectures": [name]}
        entries.write_text(json.dumps(changed))
        assert type(skeleton(tmp_path)) is type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
        assert names_of(tmp_path).missing == ()
    assert type(skeleton(config("llama"))) is transformers.LlamaForCausalLM
