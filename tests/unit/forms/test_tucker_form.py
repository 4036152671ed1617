"""The form that `benchmarks/tucker_heads.py` stores stacks of heads in, and its decomposition."""

import json
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kanna.checkpoint.declared import quantization_config
from kanna.errors import InputError
from kanna.forms import LowRank, dense_weight, from_json
from kanna.runs.assemble import densify

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from tucker_form import Tucker, hooi, project  # noqa: E402


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stack(seed: int) -> torch.Tensor:
    """(heads, head size, inputs) with shared structure and noise."""
    core = draw(seed + 3, 3, 4, 5)
    shared = torch.einsum(
        "ia,jb,kc,abc->ijk", draw(seed, 6, 3), draw(seed + 1, 12, 4), draw(seed + 2, 30, 5), core
    )
    return shared + 2.0 * draw(seed + 4, 6, 12, 30)


def approximation(tensor: torch.Tensor, factors: list[torch.Tensor]) -> torch.Tensor:
    core = project(tensor, factors)
    return torch.einsum("abc,ia,jb,kc->ijk", core, *factors)


@st.composite
def cases(draw_: st.DrawFn) -> tuple[Tucker, int, int, bool]:
    """(form, m, n, bias)."""
    heads, width, other = (draw_(st.integers(1, 5)) for _ in range(3))
    ranks = [draw_(st.none() | st.integers(1, size)) for size in (heads, width, other)]
    side = draw_(st.sampled_from(("out", "in")))
    m, n = (heads * width, other) if side == "out" else (other, heads * width)
    return Tucker(heads, side, *ranks), m, n, draw_(st.booleans())


@settings(deadline=None)
@given(case=cases(), seed=st.integers(0, 99))
def test_what_holds_for_every_form(case: tuple[Tucker, int, int, bool], seed: int) -> None:
    form, m, n, bias = case
    assert from_json(json.loads(json.dumps(form.to_json()))) == form
    module = form.build(m, n, bias, torch.float64)
    state = module.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == form.tensors(m, n, bias)
    (header,) = struct.unpack("<Q", (file := safetensors.torch.save(state))[:8])
    assert form.bytes(m, n, torch.float64, bias) == len(file) - 8 - header
    for number, (name, tensor) in enumerate(state.items()):
        if name != "weight":
            tensor.copy_(draw(100 * seed + number, *tensor.shape))
    offset = state["bias"] if bias else 0.0
    merged = dense_weight(module)
    torch.testing.assert_close(module(torch.eye(n, dtype=torch.float64)), merged.T + offset)
    parts = {name: state[f"{name}.weight"] for name in form.nested}
    again = form.pack(parts, state.get("bias"))
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "form", [Tucker(5), Tucker(4, head_rank=5), Tucker(4, width_rank=7), Tucker(4, outer_rank=31)]
)
def test_a_form_that_does_not_fit_is_an_input_error(form: Tucker) -> None:
    with pytest.raises(InputError, match="does not fit"):
        form.tensors(24, 30)
    with pytest.raises(InputError, match="'out' or 'in'"):
        Tucker(4, "up")


def test_with_heads_and_widths_of_full_rank_it_is_the_pair() -> None:
    form, low = Tucker(6, outer_rank=5), LowRank(5)
    assert form.parameters(72, 30) == low.parameters(72, 30)
    weight = stack(0).flatten(0, 1)
    *_, outer = hooi(stack(0), (6, 12, 5))
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    merged = form.merge(form.pack({"core": weight @ outer, "outer": outer.T.contiguous()}), 72, 30)
    torch.testing.assert_close(merged, (left[:, :5] * values[:5]) @ right[:5], atol=1e-8, rtol=0)


def test_hooi_never_raises_the_error_and_improves_on_hosvd() -> None:
    tensor = stack(3)
    found = [hooi(tensor, (2, 2, 2), sweeps=sweeps, tolerance=-1.0) for sweeps in range(5)]
    errors = [float((tensor - approximation(tensor, factors)).norm() / tensor.norm()) for factors in found]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(errors))
    assert errors[-1] < errors[0] - 1e-4


def test_hooi_is_exact_at_the_true_ranks() -> None:
    core = draw(7, 3, 4, 5)
    clean = torch.einsum("ia,jb,kc,abc->ijk", draw(4, 6, 3), draw(5, 12, 4), draw(6, 30, 5), core)
    torch.testing.assert_close(approximation(clean, hooi(clean, (3, 4, 5))), clean, atol=1e-9, rtol=0)
    with pytest.raises(InputError, match="do not fit"):
        hooi(clean, (1, 1, 2))


_NEW_PROCESS = """
import sys
import kanna
import torch
sys.path.insert(0, sys.argv[3])
import tucker_form
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(torch.arange(3, 15)[None])[0], sys.argv[2])
"""


@torch.random.fork_rng(devices=[])
def test_a_checkpoint_loads_in_a_new_process(tmp_path: Path) -> None:
    """Projections of a layer in the form; what is loaded computes the same there, and multiplied out."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    base, out = tmp_path / "base", tmp_path / "out"
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    forms = {
        f"model.layers.1.self_attn.{role}_proj": form
        for role, form in {
            "q": Tucker(4, "out", 3, 6, 20),
            "v": Tucker(2, "out", None, 5, 20),
            "o": Tucker(4, "in", 3, None, 25),
        }.items()
    }
    tensors = load_file(base / "model.safetensors")
    for path, form in forms.items():
        m, n = tensors.pop(f"{path}.weight").shape
        shapes = {name: (child.m, child.n) for name, child in form.children(m, n).items()}
        packed = form.pack({name: 0.2 * torch.randn(shape) for name, shape in shapes.items()})
        tensors |= {f"{path}.{suffix}": tensor for suffix, tensor in packed.items()}
    out.mkdir()
    safetensors.torch.save_file(tensors, out / "model.safetensors", {"format": "pt"})
    written = json.loads((base / "config.json").read_text())
    written["quantization_config"] = quantization_config(forms)
    (out / "config.json").write_text(json.dumps(written))
    command = [sys.executable, "-c", _NEW_PROCESS, str(out), str(tmp_path / "logits"), str(BENCHMARKS)]
    subprocess.run(command, check=True, capture_output=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        here = model(torch.arange(3, 15)[None])[0]
    assert torch.equal(torch.load(tmp_path / "logits"), here)
    densify(model)
    assert type(model.get_submodule("model.layers.1.self_attn.o_proj")) is torch.nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(model(torch.arange(3, 15)[None])[0], here, atol=1e-5, rtol=1e-4)
