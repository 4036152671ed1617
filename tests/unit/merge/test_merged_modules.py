import json
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import weights
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

import kanna
from kanna.errors import InputError
from kanna.methods.merge.layers import stacks_of
from kanna.methods.merge.modules import Owners, assigned
from kanna.methods.merge.reading import read_recipe

QUERY = "{}.block.{}.layer.0.SelfAttention.q.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two T5 of three layers in the encoder and two in the decoder, of which their files tell one number."""
    place = tmp_path_factory.mktemp("pair")
    for name, seed in (("a", 1), ("b", 2)):
        config = T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=2
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            T5ForConditionalGeneration(config).save_pretrained(place / name)
    return place / "a", place / "b"


def entry(model: Path, *layers: int, **parameters: object) -> dict[str, object]:
    taken = {"layer_range": list(layers)} if layers else {}
    return {"model": str(model), **taken, "parameters": parameters}


def mean(a: Tensor, b: Tensor, of_a: float, of_b: float) -> Tensor:
    return (of_a * a.double() + of_b * b.double()) / (of_a + of_b)


def test_a_gradient_runs_over_the_layers_of_each_module(pair: tuple[Path, Path], tmp_path: Path) -> None:
    given = {
        "merge_method": "linear",
        "models": [entry(pair[0], weight=[1, 0]), entry(pair[1], weight=[0, 1])],
    }
    kanna.merge(given, tmp_path / "out")
    a, b, found = *map(weights, pair), weights(tmp_path / "out")
    shares = {"encoder": (0, 0.5, 1), "decoder": (0, 1)}
    for module, of_b in shares.items():
        for number, share in enumerate(of_b):
            name = QUERY.format(module, number)
            torch.testing.assert_close(found[name].double(), mean(a[name], b[name], 1 - share, share))
    for name in ("shared.weight", "decoder.final_layer_norm.weight"):
        assert torch.equal(found[name], a[name])


def test_each_module_has_models_and_values_of_its_own(pair: tuple[Path, Path], tmp_path: Path) -> None:
    modules: dict[str, Any] = {
        "decoder": {
            "slices": [{"sources": [entry(pair[1], 0, 2)]}, {"sources": [entry(pair[0], 1, 2)]}],
            "parameters": {"weight": 2.0},
        },
        "encoder": {"models": [entry(pair[0], weight=[0, 1]), entry(pair[1], weight=1)]},
        "shared": {"models": [entry(pair[1], weight=1)]},
    }
    out = tmp_path / "out"
    assert kanna.merge({"merge_method": "linear", "modules": modules}, out).passed
    a, b, found = *map(weights, pair), weights(out)
    for number, share in enumerate((0, 0.5, 1)):
        name = QUERY.format("encoder", number)
        torch.testing.assert_close(found[name].double(), mean(a[name], b[name], share, 1))
    for number, (model, before) in enumerate(((b, 0), (b, 1), (a, 1))):
        assert torch.equal(found[QUERY.format("decoder", number)], model[QUERY.format("decoder", before)])
    assert torch.equal(found["shared.weight"], b["shared.weight"])
    assert torch.equal(found["decoder.final_layer_norm.weight"], a["decoder.final_layer_norm.weight"])
    norm = "encoder.final_layer_norm.weight"
    torch.testing.assert_close(found[norm].double(), mean(a[norm], b[norm], 0, 1))
    config = json.loads((out / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (3, 3)
    _, said = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]


def test_the_layers_of_the_other_module_stay_as_many(pair: tuple[Path, Path], tmp_path: Path) -> None:
    short = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    T5ForConditionalGeneration(short).save_pretrained(tmp_path / "one")
    path = tmp_path / "one" / "config.json"
    config = json.loads(path.read_text())
    del config["num_decoder_layers"]  # as many as the encoder has
    path.write_text(json.dumps(config))
    modules = {
        "encoder": {"slices": [{"sources": [entry(tmp_path / "one", 0, 1)]}]},
        "decoder": {"models": [entry(tmp_path / "one")]},
    }
    kanna.merge({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["num_layers"], written["num_decoder_layers"]) == (1, 2)


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ({"encoder": "models"}, r"nothing is said of the layers decoder.block.\*\n.*add the module decoder"),
        ({"encoder": "models", "decoder": "models", "encoder.block": "models"}, "are the same module"),
        ({"encoder": "models", "decoder": "models", "tower": "slices"}, "no layers in a module tower"),
        ({"encoder": "models", "decoder": "beyond"}, r"\[0, 3\] goes beyond .*a, which has 2 layers"),
    ],
    ids=["one is missing", "one twice", "one that is not there", "too many layers"],
)
def test_modules_that_do_not_fit(modules: dict[str, str], said: str, pair: tuple[Path, Path]) -> None:
    kinds: dict[str, Any] = {
        "models": {"models": [entry(pair[0])]},
        "slices": {"slices": [{"sources": [entry(pair[0], 0, 1)]}]},
        "beyond": {"slices": [{"sources": [entry(pair[0], 0, 3)]}]},
    }
    given = {"merge_method": "passthrough", "modules": {name: kinds[kind] for name, kind in modules.items()}}
    with pytest.raises(InputError, match=said):
        kanna.merge_plan(given)


def test_slices_of_a_model_with_several_modules(pair: tuple[Path, Path]) -> None:
    given = {"merge_method": "passthrough", "slices": [{"sources": [entry(pair[0], 0, 2)]}]}
    with pytest.raises(InputError, match="several modules: decoder, encoder"):
        kanna.merge_plan(given)


def test_which_module_a_tensor_outside_of_layers_is_of() -> None:
    config = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"depth": 2}}
    names = [f"model.layers.{number}.mlp.weight" for number in range(3)]
    names += [f"visual.blocks.{number}.mlp.weight" for number in range(2)]
    stacks = stacks_of(config, [*names, "visual.merger.mlp.0.weight", "visual.merger.mlp.2.weight"])
    assert [(stack.prefix, stack.role) for stack in stacks] == [
        ("model.layers.", "text"),
        ("visual.blocks.", "vision"),
    ]
    tensors = (
        "lm_head.weight",
        "model.norm.weight",
        "visual.patch_embed.weight",
        "visual.merger.mlp.0.weight",
    )

    def owned(*modules: str) -> list[str]:
        inner = {"models": [{"model": "one"}]}
        recipe = read_recipe({"merge_method": "passthrough", "modules": dict.fromkeys(modules, inner)})
        found = Owners(assigned(recipe, stacks), stacks)
        return [modules[found.of(name)] for name in tensors]

    text, tower, between = "text_decoder", "vision_tower", "multi_modal_projector"
    assert owned(tower, text) == [text, text, tower, tower]
    assert owned(tower, between, text) == [text, text, tower, between]
    assert owned("visual", "default", "model.layers") == ["default", "model.layers", "visual", "visual"]


def test_towers_that_have_as_many_layers_as_the_text() -> None:
    config = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}}
    names = [f"{path}.layers.{number}.w" for path in ("vision_tower.encoder", "model") for number in (0, 1)]
    assert {stack.role for stack in stacks_of(config, names)} == {"text", "vision"}
