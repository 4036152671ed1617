"""Names in files that were saved from the base model, or from the model with its head."""

from pathlib import Path

import pytest
from family_configs import config, model
from safetensors import safe_open
from transformers import AutoModel

from kanna.models.inventory import inventory
from kanna.models.names import FileNames, tensor_name
from kanna.models.skeleton import skeleton


def saved_names(directory: Path) -> set[str]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return set(file.keys())


def mapped(name: str, present: set[str]) -> dict[str, str]:
    built = skeleton(config(name))
    names = FileNames.of(built, present)
    return {m.tensor: found for m in inventory(built).matrices if (found := names.get(m.tensor)) is not None}


@pytest.mark.parametrize(
    "name",
    ["llama", "gpt2", "bert_mlm", "bert_classifier", "roberta_mlm", "roberta_classifier", "opt", "falcon_7b"],
)
@pytest.mark.parametrize("base_only", [False, True])
def test_every_matrix_is_found(name: str, base_only: bool, tmp_path: Path) -> None:
    real = model(name)
    (real.base_model if base_only else real).save_pretrained(tmp_path)
    present = saved_names(tmp_path)
    listed = inventory(skeleton(config(name)))
    names = mapped(name, present)
    assert set(names) == {m.tensor for m in listed.matrices}
    assert set(names.values()) <= present
    prefix = f"{listed.base_model_prefix}."
    assert all(value == (key.removeprefix(prefix) if base_only else key) for key, value in names.items())


def test_gpt2_files_without_the_prefix(tmp_path: Path) -> None:
    model("gpt2").base_model.save_pretrained(tmp_path)
    names = mapped("gpt2", saved_names(tmp_path))
    assert names["transformer.h.0.attn.c_attn.weight"] == "h.0.attn.c_attn.weight"


@pytest.mark.parametrize("name", ["gpt2", "bert_classifier", "roberta_mlm"])
def test_base_class_from_the_files_of_a_model_with_a_head(name: str, tmp_path: Path) -> None:
    model(name).save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    listed = inventory(base)
    prefix = inventory(skeleton(config(name))).base_model_prefix
    names = FileNames.of(base, saved_names(tmp_path))
    assert all(names.get(m.tensor) == f"{prefix}.{m.tensor}" for m in listed.matrices)


def test_the_exact_name_comes_first() -> None:
    assert tensor_name("bert.x", {"bert.x", "x"}, "bert") == "bert.x"
    assert tensor_name("bert.x", {"x"}, "bert") == "x"
    assert tensor_name("x", {"bert.x"}, "bert") == "bert.x"


def test_absent_names_are_left_out() -> None:
    assert tensor_name("lm_head.weight", {"x"}, "model") is None


def test_a_prefix_must_be_a_whole_part() -> None:
    assert tensor_name("models.x", {"s.x"}, "model") is None
