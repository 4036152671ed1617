"""Views of fused weights against what the modelling code really does with them.

One token at position 0 has no rotation, so the queries and keys that reach the attention are the projections.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from family_configs import FAMILIES, OTHERS, VOCAB, model
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kanna.models.inventory import inventory
from kanna.models.matrix import Matrix
from kanna.models.views import read, read_bias, write

BATCH = 7
TOKENS = torch.arange(3, 3 + BATCH)[:, None] % VOCAB


def run(real: nn.Module) -> Tensor:
    with torch.no_grad():
        return real(input_ids=TOKENS).logits


def inputs_of(real: nn.Module, path: str) -> Tensor:
    """What module `path` reads: (BATCH, n)."""
    seen: list[Tensor] = []
    hook = real.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run(real)
    hook.remove()
    return seen[0].reshape(BATCH, -1)


def product(real: nn.Module, matrix: Matrix, inputs: Tensor) -> Tensor:
    """x W^T + b of one matrix through its view: (BATCH, m)."""
    module = real.get_submodule(matrix.module)
    bias = read_bias(module.bias, matrix.view) if matrix.has_bias else None
    return nn.functional.linear(inputs, read(getattr(module, matrix.parameter), matrix.view), bias)


def matrices(real: nn.Module, layer: int = 1) -> dict[str, Matrix]:
    return {m.role: m for m in inventory(real).matrices if m.layer == layer}


def attention_inputs(real: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """Per layer, the q, k, v given to the attention function, each (BATCH, heads * width)."""
    seen: list[tuple[Tensor, ...]] = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def recording(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(t.transpose(1, 2).reshape(BATCH, -1) for t in (q, k, v)))
        return sdpa(module, q, k, v, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", recording)
    real.set_attn_implementation("sdpa")
    run(real)
    return seen


WITH_INTERFACE = [
    "gpt2",
    "gpt_neox",
    "phi3",
    "modernbert",
    "gpt_bigcode",
    "gpt_bigcode_mha",
    "llama",
    "bert_mlm",
]


@pytest.mark.parametrize("name", WITH_INTERFACE)
def test_qkv_reach_the_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = model(name)
    seen = attention_inputs(real, monkeypatch)[1]
    parts = matrices(real)
    inputs = inputs_of(real, parts["q"].module)
    for role, used in zip("qkv", seen, strict=True):
        torch.testing.assert_close(product(real, parts[role], inputs), used)


@pytest.mark.parametrize("name", ["falcon_7b", "falcon_40b", "falcon_rw", "bloom"])
def test_qkv_by_the_models_own_split(name: str) -> None:
    real = model(name)
    parts = matrices(real)
    path = parts["q"].module
    attention = real.get_submodule(path.rpartition(".")[0])
    inputs = inputs_of(real, path)
    fused = real.get_submodule(path)(inputs)[:, None]
    if name == "bloom":
        used = [t.transpose(1, 2) for t in attention._reshape(fused)]
    else:
        used = list(attention._split_heads(fused))
    if name == "falcon_40b":  # the split repeats each key-value head for the queries of its group
        group = attention.num_heads // attention.num_kv_heads
        used = [used[0], used[1][:, :, ::group], used[2][:, :, ::group]]
    for role, part in zip("qkv", used, strict=True):
        torch.testing.assert_close(product(real, parts[role], inputs), part.reshape(BATCH, -1))


def test_mpt_by_chunks() -> None:
    real = model("mpt")
    parts = matrices(real)
    inputs = inputs_of(real, parts["q"].module)
    chunks = real.get_submodule(parts["q"].module)(inputs).chunk(3, dim=1)
    for role, part in zip("qkv", chunks, strict=True):
        torch.testing.assert_close(product(real, parts[role], inputs), part)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon_rw", "bloom", "mpt", "gpt_bigcode_mha"])
def test_one_token_attends_to_its_own_value(name: str) -> None:
    """With a single key the attention returns the value: what `o` reads is `v` of the token."""
    real = model(name)
    parts = matrices(real)
    value = product(real, parts["v"], inputs_of(real, parts["v"].module))
    torch.testing.assert_close(inputs_of(real, parts["o"].module), value)


@pytest.mark.parametrize(("name", "activation"), [("phi3", "silu"), ("glm4", "silu"), ("modernbert", "gelu")])
def test_gate_and_up(name: str, activation: str) -> None:
    real = model(name)
    parts = matrices(real)
    inputs = inputs_of(real, parts["gate"].module)
    gate, up = (product(real, parts[role], inputs) for role in ("gate", "up"))
    expected = getattr(nn.functional, activation)(gate) * up
    torch.testing.assert_close(inputs_of(real, parts["down"].module), expected)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_expert_views(name: str) -> None:
    """A model with one expert switched in by hand: y = down(act(gate x) * up x) of expert 2."""
    real = model(name)
    experts = real.get_submodule("model.layers.1.mlp.experts")
    chosen = {m.role: m for m in inventory(real).refused if m.layer == 1 and m.view.expert == 2}
    weights = {role: read(getattr(experts, m.parameter), m.view) for role, m in chosen.items()}
    x = torch.randn(5, 24)
    if name == "gpt_oss":
        with torch.no_grad():
            experts.gate_up_proj_bias.zero_()
            experts.down_proj_bias.zero_()
    index, scores = torch.full((5, 1), 2), torch.ones(5, 1)
    with torch.no_grad():
        actual = experts(x, index, scores)
        gate, up = x @ weights["gate"].T, x @ weights["up"].T
        inner = nn.functional.silu(gate) * up
        if name == "gpt_oss":
            gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
            inner = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        torch.testing.assert_close(actual, inner @ weights["down"].T)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_round_trip_is_bit_exact(name: str) -> None:
    real = model(name)
    for matrix in inventory(real).matrices:
        parameter = getattr(real.get_submodule(matrix.module), matrix.parameter).detach()
        value = read(parameter, matrix.view).clone()
        assert torch.equal(write(parameter, matrix.view, value), parameter)
        changed = write(parameter, matrix.view, value + 1)
        assert torch.equal(read(changed, matrix.view), value + 1)
        assert int((changed != parameter).sum()) == matrix.parameters


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon_40b", "phi3"])
def test_slices_cover_the_parameter_once(name: str) -> None:
    real = model(name)
    parts = [m for m in matrices(real).values() if m.role in "qkv"]
    rows = torch.cat(
        [read(torch.arange(10_000)[:, None], replace(m.view, transposed=False)).flatten() for m in parts]
    )
    assert torch.equal(rows.sort().values, torch.arange(sum(m.out_features for m in parts)))
