"""The inventory of every family: shapes, roles, order, what is left out and why."""

import pytest
import transformers
from family_configs import FAMILIES, HEADS, HIDDEN, INNER, KEY_HEADS, LAYERS, OTHERS, VOCAB, config, model
from torch import nn
from transformers import Gemma3Config, T5Config

from kanna.errors import InputError
from kanna.models.inventory import Inventory, inventory
from kanna.models.skeleton import skeleton
from kanna.models.views import read, read_bias

GATED = ("q", "k", "v", "o", "gate", "up", "down")
PLAIN = ("q", "k", "v", "o", "fc_in", "fc_out")


def shapes(listed: Inventory, layer: int = 0) -> dict[str, tuple[int, int]]:
    return {m.role: m.shape for m in listed.matrices if m.layer == layer and m.view.expert is None}


def expected(name: str) -> dict[str, tuple[int, int]]:
    """Shapes by the sizes in the configuration; `wide` families have heads of 10 instead of 4."""
    wide = name in ("mistral", "qwen3", "gemma2", "gemma3", "qwen3_moe")
    width = 10 if wide else HIDDEN // HEADS
    one_head = ("falcon_7b",)
    grouped = ("llama", "qwen2", "phi", "phi3", "falcon_40b", "mixtral", "qwen2_moe")
    key_heads = 1 if name in one_head else KEY_HEADS if wide or name in grouped else HEADS
    q, k = HEADS * width, key_heads * width
    attention = {"q": (q, HIDDEN), "k": (k, HIDDEN), "v": (k, HIDDEN), "o": (HIDDEN, q)}
    plain = ("phi", "gpt", "opt", "falcon", "bert", "roberta")
    if name.startswith(plain) and name != "phi3":
        return attention | {"fc_in": (INNER, HIDDEN), "fc_out": (HIDDEN, INNER)}
    if name in ("mixtral", "qwen3_moe"):
        return attention
    inner = 18 if name == "qwen2_moe" else INNER
    return attention | {"gate": (inner, HIDDEN), "up": (inner, HIDDEN), "down": (HIDDEN, inner)}


@pytest.mark.parametrize("name", FAMILIES)
def test_roles_and_shapes(name: str) -> None:
    listed = inventory(skeleton(config(name)))
    assert shapes(listed) == expected(name)
    assert len(listed.blocks) == LAYERS
    assert listed.architecture == FAMILIES[name][1]


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_skeleton_equals_real_model(name: str) -> None:
    assert inventory(skeleton(config(name))) == inventory(model(name))


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_every_parameter_is_accounted_for(name: str) -> None:
    real = model(name)
    listed = inventory(real)
    small = sum(p.numel() for p in real.parameters() if p.dim() < 2)
    matrices = sum(m.parameters for m in listed.matrices)
    skipped = sum(s.parameters for s in listed.skipped)
    assert matrices + skipped + small == listed.parameters == real.num_parameters()
    assert all(s.reason for s in listed.skipped)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_views_have_the_shape_they_say(name: str) -> None:
    real = model(name)
    for matrix in inventory(real).matrices:
        module = real.get_submodule(matrix.module)
        assert read(getattr(module, matrix.parameter), matrix.view).shape == matrix.shape
        if matrix.has_bias and matrix.view.expert is None:
            assert read_bias(module.bias, matrix.view).shape == (matrix.out_features,)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_names_are_unique_and_in_order(name: str) -> None:
    matrices = inventory(skeleton(config(name))).matrices
    assert len({m.name for m in matrices}) == len(matrices)
    assert [m.layer for m in matrices] == sorted(m.layer for m in matrices)
    assert all(m.tensor.startswith(m.module) for m in matrices)


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("stablelm", GATED),
        ("olmo2", GATED),
        ("cohere", GATED),
        ("mpt", PLAIN),
        ("bloom", PLAIN),
        ("modernbert", GATED),
        ("gpt_bigcode", PLAIN),
        ("codegen", ("qkv", "o", "fc_in", "fc_out")),
        ("glm4", GATED),
        ("distilbert", PLAIN),
        ("starcoder2", PLAIN),
        ("nemotron", PLAIN),
        ("gpt_oss", GATED),
    ],
)
def test_other_architectures(name: str, roles: tuple[str, ...]) -> None:
    listed = inventory(skeleton(config(name)))
    assert listed.roles == roles
    assert len(listed.blocks) == LAYERS
    assert any("embedding" in s.reason for s in listed.skipped)


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gemma3", "gpt2", "opt", "falcon_7b", "bert_mlm"])
def test_tied_embeddings_are_counted_once(name: str) -> None:
    listed = inventory(skeleton(config(name)))
    assert listed.tied_embeddings
    tied = [s for s in listed.skipped if "tied to" in s.reason]
    assert len(tied) == 1
    assert tied[0].parameters == 0


@pytest.mark.parametrize("name", ["llama", "phi", "gpt_neox", "mixtral", "bert_classifier"])
def test_embeddings_that_are_not_tied(name: str) -> None:
    listed = inventory(skeleton(config(name)))
    assert not listed.tied_embeddings
    embedding = next(s for s in listed.skipped if s.reason.startswith("input embedding"))
    assert embedding.parameters == VOCAB * HIDDEN


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("bert_classifier", ["classifier.weight"]),
        ("bert_mlm", ["cls.predictions.transform.dense.weight"]),
        ("roberta_classifier", ["classifier.dense.weight", "classifier.out_proj.weight"]),
        ("roberta_mlm", ["lm_head.dense.weight"]),
    ],
)
def test_heads_are_listed_with_the_reason(name: str, heads: list[str]) -> None:
    listed = inventory(skeleton(config(name)))
    assert [s.name for s in listed.skipped if "head of" in s.reason] == heads
    assert all(listed.architecture in s.reason for s in listed.skipped if s.name in heads)
    assert not any(m.module.startswith(("classifier", "cls", "lm_head")) for m in listed.matrices)


def test_pooler_is_outside_the_blocks() -> None:
    listed = inventory(skeleton(config("bert_classifier")))
    pooler = next(s for s in listed.skipped if "pooler" in s.name)
    assert "outside the transformer blocks bert.encoder.layer" in pooler.reason


@pytest.mark.parametrize(("name", "inner"), [("mixtral", INNER), ("qwen2_moe", 14), ("qwen3_moe", 14)])
def test_experts_are_listed_and_refused(name: str, inner: int) -> None:
    listed = inventory(skeleton(config(name)))
    experts = [m for m in listed.refused if m.layer == 0]
    assert len(experts) == 4 * 3
    assert {m.role: m.shape for m in experts} == {
        "gate": (inner, HIDDEN),
        "up": (inner, HIDDEN),
        "down": (HIDDEN, inner),
    }
    assert all("stacked in one 3-D parameter" in m.refused for m in experts)
    assert "model.layers.0.mlp.experts.gate_up_proj#3.up" in {m.name for m in experts}
    assert any(s.reason.startswith("router") for s in listed.skipped)
    assert not any(m.refused for m in listed.compressible)


def test_dense_layer_among_experts_is_not_refused() -> None:
    listed = inventory(skeleton(config("qwen2_moe")))
    assert {m.role for m in listed.compressible if m.layer == 1} == set(GATED)


def test_one_row_gate_is_too_small() -> None:
    listed = inventory(skeleton(config("qwen2_moe")))
    gate = next(s for s in listed.skipped if s.name.endswith("shared_expert_gate.weight"))
    assert gate.reason == "too small: no rank saves anything"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("FalconMamba", {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2}),
        ("XLNet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}),
        ("Rwkv", {"hidden_size": 16, "num_hidden_layers": 2}),
    ],
)
def test_what_else_has_three_dimensions_is_no_stack_of_experts(kind: str, settings: dict[str, int]) -> None:
    made = getattr(transformers, f"{kind}Config")(vocab_size=32, **settings)
    suffix = "LMHeadModel" if kind == "XLNet" else "ForCausalLM"
    made.architectures = [f"{kind}{suffix}"]
    listed = inventory(skeleton(made))
    assert listed.matrices and not listed.refused
    assert all(matrix.view.expert is None and 1 not in matrix.shape for matrix in listed.matrices)
    model = skeleton(made)
    deep = {
        name for name, p in model.named_parameters() if p.dim() == 3 and name.startswith(listed.blocks_path)
    }
    assert deep and deep <= {entry.name for entry in listed.skipped}


def test_lists_in_the_list_of_blocks_are_looked_into() -> None:
    made = transformers.FunnelConfig(
        vocab_size=32, block_sizes=[1, 2], d_model=16, n_head=2, d_head=8, d_inner=24
    )
    made.architectures = ["FunnelForMaskedLM"]
    blocks = inventory(skeleton(made)).blocks
    assert blocks == tuple(f"funnel.encoder.blocks.{path}" for path in ("0.0", "1.0", "1.1"))


def test_break_even_rank_is_the_largest_that_saves() -> None:
    for matrix in inventory(skeleton(config("llama"))).matrices:
        rows, columns = matrix.shape
        rank = matrix.break_even_rank
        assert rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)


def test_model_without_blocks() -> None:
    with pytest.raises(InputError, match="no list of transformer blocks"):
        inventory(nn.Sequential(nn.Linear(4, 4)))


def test_blocks_without_linear_layers() -> None:
    holder = nn.Module()
    holder.layers = nn.ModuleList([nn.LayerNorm(4)])
    with pytest.raises(InputError, match="no linear layer"):
        inventory(holder)


def test_plain_torch_module_is_walked() -> None:
    holder = nn.Module()
    holder.layers = nn.ModuleList([nn.ModuleDict({"mixer": nn.Linear(6, 9)}) for _ in range(2)])
    listed = inventory(holder)
    assert [(m.name, m.role, m.shape) for m in listed.matrices] == [
        ("layers.0.mixer", "mixer", (9, 6)),
        ("layers.1.mixer", "mixer", (9, 6)),
    ]
    assert listed.matrices[0].group == "other"


def test_cross_attention_of_gpt2_has_keys_and_values_only() -> None:
    settings = config("gpt2")
    settings.add_cross_attention = True
    listed = inventory(skeleton(settings))
    cross = {
        m.name.rpartition("crossattention.")[2]: m for m in listed.matrices if "crossattention" in m.name
    }
    assert {m.role for m in cross.values()} == {"q", "k", "v", "o"}
    assert cross["c_attn#v"].shape == (HIDDEN, HIDDEN)
    assert cross["q_attn"].layer == cross["c_attn#v"].layer


def test_encoder_and_decoder() -> None:
    """Blocks of both stacks, the encoder's first; what lies outside them is listed as left out."""
    settings = T5Config(
        architectures=["T5ForConditionalGeneration"],
        vocab_size=VOCAB,
        d_model=HIDDEN,
        d_kv=4,
        d_ff=INNER,
        num_layers=2,
        num_heads=HEADS,
    )
    listed = inventory(skeleton(settings))
    assert listed.blocks == tuple(f"{stack}.block.{i}" for stack in ("encoder", "decoder") for i in range(2))
    assert listed.has_decoder_apart
    assert [m.layer for m in listed.matrices if m.role == "q"] == [0, 1, 2, 2, 3, 3]
    assert not any("DenseReluDense" in s.name or "Attention.q" in s.name for s in listed.skipped)


def test_language_part_of_a_multimodal_model() -> None:
    text = config("gemma3").to_dict()
    vision = {"hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = Gemma3Config(
        architectures=["Gemma3ForConditionalGeneration"], text_config=text, vision_config=vision
    )
    listed = inventory(skeleton(settings))
    assert listed.blocks_path.endswith("language_model.layers")
    assert shapes(listed) == expected("gemma3")
    assert any("vision" in s.name for s in listed.skipped)
