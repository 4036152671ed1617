from pathlib import Path

import pytest
import yaml

import kanna
from kanna.errors import InputError
from kanna.methods.merge.layers import Layers, layers_of, position
from kanna.methods.merge.layout import Part, Target
from kanna.methods.merge.reading import read_recipe
from kanna.methods.merge.recipe import Recipe
from kanna.methods.merge.resolve import check_gradients, resolved, warnings_of

GOOD = """
x-anchor: &half {weight: 0.5}
models:
  - model: one
    parameters: {<<: *half}
  - model: two
    parameters:
      weight:
        - filter: mlp
          value: [0, 1]
        - value: "2.5e-1"
merge_method: ties
base_model: zero
parameters:
  density: [1, 0.5, 0.25]
  normalize: false
  normalize: true
  int8_mask: true
  gamma: 0.1
dtype: float32
out_dtype: bfloat16
"""
TENSORS = [
    "model.embed_tokens.weight",
    *(f"model.layers.{n}.{part}.weight" for n in range(3) for part in ("self_attn", "mlp")),
    "model.norm.weight",
]


def targets(recipe: Recipe, layers: Layers | None) -> list[Target]:
    """What a recipe of one slice makes of three layers."""
    (one,) = recipe.slices
    found = []
    for name in TENSORS:
        number = None if layers is None else layers.number(name)
        place = 0.0 if layers is None or number is None else position(number, layers.count)
        found.append(Target(name, tuple(Part(n, name) for n in range(len(one.sources))), one, place))
    return found


def test_what_holds_for_which_tensor(tmp_path: Path) -> None:
    recipe = read_recipe(write(GOOD, tmp_path))
    assert recipe.models == ("zero", "one", "two")
    assert recipe.dtype == "bfloat16"
    layers = layers_of({"num_hidden_layers": 3}, TENSORS)
    assert layers == Layers("model.layers.", 3)
    found = resolved(recipe, targets(recipe, layers))
    assert found["model.embed_tokens.weight"].each("weight") == (0, 0.5, 0.25)
    assert found["model.norm.weight"].each("density") == (0, 1, 1)
    assert found["model.layers.1.mlp.weight"].each("weight") == (0, 0.5, 0.5)
    assert found["model.layers.1.mlp.weight"].each("density") == (0, 0.5, 0.5)
    assert found["model.layers.2.mlp.weight"].each("weight") == (0, 0.5, 1)
    assert found["model.layers.2.self_attn.weight"].each("weight") == (0, 0.5, 0.25)
    assert found["model.layers.2.self_attn.weight"].each("density") == (0, 0.25, 0.25)
    assert found["model.norm.weight"].one("normalize") == 1
    said = "\n".join(recipe.warnings)
    assert (
        "x-anchor" in said and "int8_mask has no effect" in said and "gamma has no effect under ties" in said
    )
    assert "first value" in warnings_of(recipe)[0]


@pytest.mark.parametrize(("given", "value"), [("1", 1), ("0.0", 0), ("yes", 1), ("false", 0), ("1.0", 1)])
def test_flags_are_numbers_as_well(given: str, value: float, tmp_path: Path) -> None:
    (one,) = read_recipe(
        write(f"merge_method: linear\n{MODELS}parameters: {{normalize: {given}}}\n", tmp_path)
    ).slices
    assert one.shared[0]["normalize"].value("any", 0) == value


def test_models_are_named_by_parts(models: dict[str, Path], tmp_path: Path) -> None:
    given = "{model: {path: a, revision: main}, lora: {path: b/c}}"
    recipe = read_recipe(write("merge_method: linear\n" + MODELS.replace("one", given), tmp_path))
    assert recipe.models == ("a@main+b/c",)
    named = {"model": {"path": str(models["a"])}}
    kanna.merge({"merge_method": "passthrough", "models": [{"model": named}]}, tmp_path / "out")
    kept = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert kept["models"] == [{"model": "a"}]


def write(text: str, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    return path


MODELS = "models:\n  - model: one\n    parameters: {weight: 1}\n"
SLICE = """merge_method: linear
slices:
  - sources:
      - {model: one, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: two, layer_range: [4, 6], parameters: {weight: 1}}
"""
LOOP = """
merge_method: linear
models: [{model: x, parameters: {weight: 1}}]
name: x
---
merge_method: linear
models: [{model: x, parameters: {weight: 1}}]
"""
BAD = [
    ("merge_method: dare-ties\n" + MODELS, "line 1", "did you mean dare_ties"),
    ("merge_method: core_space\n" + MODELS, "line 1", "no method 'core_space'"),
    ("merge_method: slerp\n" + MODELS, "line 1", "goes from a base model to another"),
    ("merge_method: linear\ndype: float32\n" + MODELS, "line 2", "did you mean dtype"),
    ("merge_method: linear\nselect_topk: 1\n" + MODELS, "line 2", "select_topk at the top is not read"),
    ("merge_method: linear\nmodels:\n  - model: one\n    weight: 1\n", "line 4", "weight beside model"),
    ("merge_method: linear\n" + MODELS.replace("weight", "wieght"), "line 4", "did you mean weight"),
    ("merge_method: linear\nslices: []\n", "line 2", "slices is no list"),
    ("merge_method: linear\nmodules: {}\n", "line 2", "modules is empty"),
    ("merge_method: linear\nmodules: {a: 1, b: 2}\n", "line 2", "the module a has keys and values"),
    ("merge_method: linear\nmodules: {a: {}}\n", "line 2", "the module a has no models and no slices"),
    ("merge_method: linear\nslices: [1]\n" + MODELS, "line 2", "models and slices stand beside"),
    (SLICE.replace("layer_range: [0, 2], ", ""), "line 4", "a source has no layer_range"),
    (SLICE.replace("[0, 2]", "[2, 0]"), "line 4", "[2, 0] is no range"),
    (SLICE.replace("[0, 2]", "[0, 3]"), "line 5", "has 3 layers of one and 2 of two"),
    (SLICE + "    weight: 1\n", "line 6", "weight in a slice is not read"),
    (SLICE + "    merge_method: ties\n", "line 6", "merge_method in a slice is not read"),
    (SLICE.replace("linear", "ties"), "line 1", "add base_model"),
    (SLICE.replace("linear", "ties") + "    base_model: zero\n", "line 3", "zero is no source of the slice"),
    ("merge_method: linear\n" + MODELS + "    layer_range: [0, 1]\n", "line 5", "belongs to slices:"),
    ("merge_method: linear\nchat_template: chatlm\n" + MODELS, "line 2", "did you mean chatml"),
    ("merge_method: linear\n" + MODELS + "---\nmerge_method: linear\n" + MODELS, "line 6", "no name"),
    (
        "name: x\nmerge_method: linear\n" + MODELS + "---\nname: x\nmerge_method: linear\n" + MODELS,
        "line 7",
        "two documents have the name x",
    ),
    (LOOP, "line 2", "x is made from itself"),
    ("name: [a]\nmerge_method: linear\n" + MODELS, "line 1", "name is a text, found ['a']"),
    ("merge_method: linear\n" + MODELS.replace("one", "one+"), "line 3", "names no adapter"),
    ("merge_method: linear\n" + MODELS.replace("one", "{path: 3}"), "line 3", "3 names no model"),
    ("merge_method: linear\n" + MODELS.replace("one", "{lora: a}"), "line 3", "names no model"),
    ("merge_method: linear\n" + MODELS.replace("one", "+two"), "line 3", "names no model"),
    ("merge_method: ties\n" + MODELS, "line 1", "add base_model"),
    ("merge_method: ties\nbase_model: one\n" + MODELS, "line 3", "no model but the base"),
    ("merge_method: linear\n" + MODELS + "  - model: one\n", "line 5", "stands twice"),
    ("merge_method: linear\n" + MODELS + "dtype: float8\n", "line 5", "no dtype 'float8'"),
    ("merge_method: linear\n" + MODELS.replace("1}", "much}"), "line 4", "weight is a number"),
    ("merge_method: linear\n" + MODELS + "parameters: {normalize: 2}\n", "line 5", "true or false"),
    ("merge_method: linear\n" + MODELS.replace("1}", "[{filter: mlp}]}"), "line 4", "no filter"),
    ("merge_method: ties\nbase_model: b\nparameters: {density: 1.5}\n" + MODELS, "line 3", "at most 1"),
    (
        "merge_method: ties\nbase_model: b\nparameters: {rescale: l2}\n" + MODELS,
        "line 3",
        "rescale is true or false, found 'l2'",
    ),
    ("models: []\nmerge_method: linear\n", "line 1", "no list"),
    ("models:\n  - one\nmerge_method: linear\n", "line 2", "keys and values"),
    ("- 1\n", "line 1", "keys and values"),
    ("a: [\n", "", "cannot be read"),
    ("a: &a [*a]\n", "", "holds itself"),
    ("", "", "is empty"),
]


@pytest.mark.parametrize(("text", "line", "said"), BAD, ids=[said for _, _, said in BAD])
def test_recipes_that_are_wrong(text: str, line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(write(text, tmp_path))
    message = str(caught.value)
    assert said in message and str(tmp_path / "recipe.yml") in message
    assert not line or f"{line}:" in message
    assert caught.value.remedy


def test_lax_makes_warnings_of_likely_mistakes(tmp_path: Path) -> None:
    text = "merge_method: linear\ndype: float32\nselect_topk: 1\n" + MODELS
    recipe = read_recipe(write(text, tmp_path), lax=True)
    assert [warning.partition(":")[0] for warning in recipe.warnings] == ["line 2", "line 3"]


def test_no_value_for_a_tensor_names_it(tmp_path: Path) -> None:
    text = "merge_method: linear\n" + MODELS.replace("1}", "[{filter: mlp, value: 1}]}")
    recipe = read_recipe(write(text, tmp_path))
    with pytest.raises(InputError, match=r"line 3: weight of one has no value for the tensor model.embed"):
        resolved(recipe, targets(recipe, None))


def test_weights_that_cancel_name_the_tensor(tmp_path: Path) -> None:
    text = "merge_method: linear\n" + MODELS + "  - {model: two, parameters: {weight: [0.3, -1]}}\n"
    recipe = read_recipe(write(text, tmp_path))
    with pytest.raises(InputError, match=r"weights of model.layers.2.self_attn.weight sum to 0"):
        resolved(recipe, targets(recipe, Layers("model.layers.", 3)))


def test_a_gradient_needs_layers(tmp_path: Path) -> None:
    recipe = read_recipe(write("merge_method: linear\n" + MODELS.replace("1}", "[0, 1]}"), tmp_path))
    assert layers_of({"num_hidden_layers": 4}, TENSORS) is None
    with pytest.raises(InputError, match="line 4: weight depends on the layer"):
        check_gradients(recipe)


def test_layers_are_counted_from_the_first_number() -> None:
    one = layers_of({"n_layer": 1}, ["h.0.experts.3.w", "wte"])
    assert one is not None and one.parts("h.0.experts.3.w") == (0, "experts.3.w")
    assert one.number("wte") is None and position(0, 1) == 1 and position(1, 3) == 0.5
    assert layers_of({"num_hidden_layers": 1}, ["encoder.0.w", "decoder.0.w"]) is None
