import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kanna.errors import InputError
from kanna.forms import Dense, Form, LowRank, Pivot, Rows, dense_weight, from_json, install

M, N = 24, 16
CONTIGUOUS = Rows((((8, 16, 16, 1), LowRank(3)), ((0, 8, 8, 1), Dense())))
INTERLEAVED = Rows((((0, 2, 6, 4), LowRank(3)), ((2, 2, 6, 4), Pivot(2)), ((4, 2, 6, 4), Dense())))
IRREGULAR = Rows((((0, 1, 2, 8), LowRank(2)), ((1, 1, 2, 8), Dense()), ((16, 8, 8, 1), Pivot(3))))
FORMS = [Dense(), LowRank(5), Pivot(5), CONTIGUOUS, INTERLEAVED, IRREGULAR]


def filled(form: Form, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A module with random numbers in it, and for Pivot a random order."""
    module = form.build(M, N, bias, dtype)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if name.endswith("order"):
            tensor.copy_(torch.randperm(len(tensor), generator=generator))
        elif tuple(tensor.shape) != (1,):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=dtype))
    return module


@pytest.mark.parametrize("form", FORMS)
def test_json_there_and_back(form: Form) -> None:
    assert from_json(form.to_json()) == form
    assert hash(from_json(form.to_json())) == hash(form)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_module_holds_just_the_declared_tensors(form: Form, bias: bool) -> None:
    state = form.build(M, N, bias, torch.bfloat16).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == form.tensors(M, N, bias)
    for name, tensor in state.items():
        assert tensor.dtype == form.dtype_of(name, torch.bfloat16)
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert form.bytes(M, N, torch.bfloat16, bias) == held


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_forward_is_the_dense_weight(form: Form, bias: bool) -> None:
    module = filled(form, bias)
    x = torch.randn(2, 3, N, dtype=torch.float64)
    offset = module.get_parameter(form.bias_suffix) if bias else None
    torch.testing.assert_close(module(x), nn.functional.linear(x, dense_weight(module), offset))


@pytest.mark.parametrize("form", FORMS)
def test_parameters_count_indices_and_not_the_sentinel(form: Form) -> None:
    shapes = form.tensors(M, N)
    counted = sum(math.prod(s) for name, s in shapes.items() if not (name.endswith("weight") and s == (1,)))
    assert form.parameters(M, N) == counted


@given(m=st.integers(2, 40), n=st.integers(1, 40), data=st.data())
def test_parameter_formulas(m: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(m - 1, n)))
    assert LowRank(k).parameters(m, n) == k * (m + n)
    assert Pivot(k).parameters(m, n) == k * (m + n) - k * k + m


@pytest.mark.parametrize("form", FORMS)
def test_meta_then_empty_then_load(form: Form) -> None:
    source = filled(form)
    with torch.device("meta"):
        target = form.build(M, N, True, torch.float64)
    assert all(t.is_meta for t in target.state_dict().values())
    target = target.to_empty(device="cpu")
    target.load_state_dict(source.state_dict())
    x = torch.randn(3, N, dtype=torch.float64)
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("form", FORMS)
def test_copies_casts_and_gradients(form: Form) -> None:
    module = filled(form)
    twin = copy.deepcopy(module).to(torch.float32)
    x = torch.randn(3, N)
    torch.testing.assert_close(twin(x).double(), module(x.double()), rtol=1e-4, atol=1e-4)
    assert all(t.dtype in (torch.float32, torch.int32) for t in twin.state_dict().values())
    twin(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in twin.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_forward_exports_as_one_graph(form: Form) -> None:
    module = filled(form)
    x = torch.randn(3, N, dtype=torch.float64)
    graph = torch.export.export(module, (x,))
    torch.testing.assert_close(graph.module()(x), module(x))


def test_no_dense_loader_takes_the_sentinel() -> None:
    state = {k: v for k, v in LowRank(2).build(M, N).state_dict().items() if k == "weight"}
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Linear(N, M, bias=False).load_state_dict(state)


def test_merge_keeps_the_dtype_and_sums_in_float32() -> None:
    ones = torch.ones(512, 512, dtype=torch.bfloat16)
    merged = LowRank(512).merge(LowRank(512).pack({"expand": ones, "reduce": ones}), 512, 512)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, torch.full((512, 512), 512, dtype=torch.bfloat16))


def test_install_replaces_a_nested_module() -> None:
    root = nn.Sequential(nn.Sequential(nn.Linear(N, M)))
    install(root, "0.0", LowRank(2).build(M, N))
    assert root(torch.randn(1, N)).shape == (1, M)
    install(root, "0", nn.Identity())
    assert isinstance(root[0], nn.Identity)


def test_dense_of_another_module_is_our_mistake() -> None:
    with pytest.raises(TypeError, match="Embedding"):
        dense_weight(nn.Embedding(2, 2))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("low_rank", "JSON object"),
        ({"rank": 3}, "unknown form None"),
        ({"form": ["low_rank"], "rank": 3}, "unknown form"),
        ({"form": "low_rnk", "rank": 3}, "low_rnk"),
        ({"form": "low_rank"}, r"missing: \['rank'\]"),
        ({"form": "low_rank", "rank": 3, "bits": 4}, r"unknown: \['bits'\]"),
        ({"form": "low_rank", "rank": 0}, "at least 1"),
        ({"form": "low_rank", "rank": True}, "at least 1"),
        ({"form": "pivot", "rank": 2.0}, "at least 1"),
        ({"form": "rows"}, "'parts'"),
        ({"form": "rows", "parts": []}, "at least one part"),
        ({"form": "rows", "parts": [{"rows": [0, 4, 4, 1]}]}, "'rows'"),
        ({"form": "rows", "parts": [{"rows": [0, 4], "form": {"form": "dense"}}]}, "four whole numbers"),
        ({"form": "rows", "parts": [{"rows": [0, 4, 2, 2], "form": {"form": "dense"}}]}, "not a slice"),
        (
            {"form": "rows", "parts": [{"rows": [0, 4, 4, 1], "form": CONTIGUOUS.to_json()}]},
            "cannot be a part",
        ),
    ],
)
def test_bad_json_is_an_input_error(data: object, text: str) -> None:
    with pytest.raises(InputError, match=text):
        from_json(data)


@pytest.mark.parametrize(
    "form",
    [
        LowRank(17),
        Pivot(17),
        Rows((((0, 8, 8, 1), Dense()),)),
        Rows((((0, 16, 16, 1), Dense()), ((8, 8, 8, 1), Dense()))),
        Rows((((1, 24, 24, 1), Dense()),)),
        Rows((((0, 10**12, 10**12, 10**6), Dense()),)),
    ],
)
def test_a_form_that_does_not_fit_is_an_input_error(form: Form) -> None:
    with pytest.raises(InputError):
        form.tensors(M, N)


def test_pivot_needs_a_row_to_mix() -> None:
    with pytest.raises(InputError, match="below 8"):
        Pivot(8).tensors(8, 16)
