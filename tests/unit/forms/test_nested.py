"""Forms inside forms: what holds for any of them, at any depth."""

import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kanna.errors import InputError, KannaError
from kanna.forms import Child, Dense, Form, FormModule, LowRank, Pivot, Rows, dense_weight, from_json
from kanna.forms.base import MOST_LEVELS

DEEP = LowRank(6, reduce=Pivot(3, basis=LowRank(2)), expand=LowRank(4, expand=Pivot(2)))


@st.composite
def forms(draw: st.DrawFn, m: int, n: int, depth: int, rows: bool = True) -> Form:
    """A form of an (m, n) matrix with at most `depth` composite forms inside one another."""
    kinds = ["dense"]
    if depth:
        kinds += ["low_rank"] + ["pivot"] * (m > 1) + ["rows"] * (rows and m > 1)
    match draw(st.sampled_from(kinds)):
        case "low_rank":
            k = draw(st.integers(1, min(m, n)))
            return LowRank(k, draw(forms(k, n, depth - 1)), draw(forms(m, k, depth - 1)))
        case "pivot":
            k = draw(st.integers(1, min(m - 1, n)))
            return Pivot(k, draw(forms(k, n, depth - 1)), draw(forms(m - k, k, depth - 1)))
        case "rows":
            return Rows(draw(parts(m, n, depth - 1)))
    return Dense()


@st.composite
def parts(draw: st.DrawFn, m: int, n: int, depth: int) -> tuple:
    """Two slices one after the other, or alternating rows, in any order."""
    if m % 2 == 0 and draw(st.booleans()):
        slices = [(0, 1, 2, m // 2), (1, 1, 2, m // 2)]
    else:
        cut = draw(st.integers(1, m - 1))
        slices = [(0, cut, cut, 1), (cut, m - cut, m - cut, 1)]
    made = [(where, draw(forms(where[1] * where[3], n, depth, rows=False))) for where in slices]
    return tuple(draw(st.permutations(made)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Form, int, int, bool]:
    """(form, m, n, bias)."""
    m, n = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return draw(forms(m, n, 3)), m, n, draw(st.booleans())


def filled(form: Form, m: int, n: int, bias: bool, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A module with random numbers and orders in it."""
    module = form.build(m, n, bias, dtype)
    for tensor in module.state_dict().values():
        if tensor.dtype == torch.int32:
            tensor.copy_(torch.randperm(len(tensor)))
        else:
            tensor.normal_()
    for inner in module.modules():
        if isinstance(inner, FormModule):
            inner.weight.zero_()
    return module


def below(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}


def repacked(form: Form, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every level of a module's state taken apart and packed again; a dense child is given as its weight."""
    state = dict(state)
    bias = state.pop(form.bias_suffix, None)
    given = {name: state[name] for name in form.own_dtypes}
    for name, child in form.nested.items():
        inner = below(state, name)
        given[name] = inner["weight"] if isinstance(child, Dense) else repacked(child, inner)
    return form.pack(given, bias)


@settings(deadline=None)
@given(case=cases())
def test_json_there_and_back(case: tuple[Form, int, int, bool]) -> None:
    form = case[0]
    again = from_json(json.loads(json.dumps(form.to_json())))
    assert again == form
    assert hash(again) == hash(form)


@settings(deadline=None)
@given(case=cases())
def test_the_module_holds_the_declared_tensors(case: tuple[Form, int, int, bool]) -> None:
    form, m, n, bias = case
    state = form.build(m, n, bias, torch.bfloat16).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == form.tensors(m, n, bias)
    assert {name: t.dtype for name, t in state.items()} == {
        name: form.dtype_of(name, torch.bfloat16) for name in state
    }
    assert set(state) == form.suffixes | ({form.bias_suffix} if bias else set())


@settings(deadline=None)
@given(case=cases())
def test_bytes_are_those_of_a_file(case: tuple[Form, int, int, bool]) -> None:
    form, m, n, bias = case
    file = safetensors.torch.save(form.build(m, n, bias, torch.float16).state_dict())
    (header,) = struct.unpack("<Q", file[:8])
    assert form.bytes(m, n, torch.float16, bias) == len(file) - 8 - header


@settings(deadline=None)
@given(case=cases())
def test_parameters_are_all_numbers_but_sentinels_and_bias(case: tuple[Form, int, int, bool]) -> None:
    form, m, n, _ = case
    module = form.build(m, n)
    sentinels = sum(isinstance(inner, FormModule) for inner in module.modules())
    assert form.parameters(m, n) == sum(t.numel() for t in module.state_dict().values()) - sentinels


@settings(deadline=None)
@given(case=cases(), seed=st.integers(0, 99))
def test_merge_is_what_the_module_does_to_the_identity(case: tuple[Form, int, int, bool], seed: int) -> None:
    form, m, n, bias = case
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = filled(form, m, n, bias)
    offset = module.get_parameter(form.bias_suffix) if bias else torch.zeros(m, dtype=torch.float64)
    merged = dense_weight(module)
    assert merged.shape == (m, n)
    torch.testing.assert_close(module(torch.eye(n, dtype=torch.float64)), merged.T + offset)


@settings(deadline=None)
@given(case=cases(), seed=st.integers(0, 99))
def test_a_module_taken_apart_and_packed_again(case: tuple[Form, int, int, bool], seed: int) -> None:
    form, m, n, bias = case
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = filled(form, m, n, bias, torch.bfloat16).state_dict()
    again = repacked(form, state)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert {name: t.dtype for name, t in again.items()} == {name: t.dtype for name, t in state.items()}


def test_children_with_their_sizes() -> None:
    assert DEEP.children(24, 16) == {
        "reduce": Child(DEEP.reduce, 6, 16),
        "expand": Child(DEEP.expand, 24, 6),
    }
    assert Pivot(5).children(24, 16) == {"basis": Child(Dense(), 5, 16), "mix": Child(Dense(), 19, 5)}
    assert list(Rows((((0, 4, 4, 1), DEEP),)).children(4, 16)) == ["parts.0"]
    assert Dense().children(24, 16) == {}


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        (Dense(), "bias"),
        (LowRank(4), "expand.bias"),
        (Pivot(4, basis=LowRank(2)), "bias"),
        (LowRank(4, expand=Pivot(2)), "expand.bias"),
        (LowRank(4, expand=LowRank(2)), "expand.expand.bias"),
        (Rows((((0, 8, 8, 1), LowRank(4)),)), "bias"),
    ],
)
def test_where_the_bias_lies(form: Form, suffix: str) -> None:
    assert form.bias_suffix == suffix
    assert form.tensors(8, 8, True)[suffix] == (8,)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (LowRank(8), '{"form": "low_rank", "rank": 8}'),
        (LowRank(8, expand=Dense()), '{"form": "low_rank", "rank": 8}'),
        (Pivot(3), '{"form": "pivot", "rank": 3}'),
        (
            LowRank(8, reduce=Pivot(3)),
            '{"form": "low_rank", "rank": 8, "reduce": {"form": "pivot", "rank": 3}}',
        ),
        (
            Rows((((0, 4, 4, 1), Dense()),)),
            '{"form": "rows", "parts": [{"rows": [0, 4, 4, 1], "form": {"form": "dense"}}]}',
        ),
    ],
)
def test_the_text_that_is_written(form: Form, text: str) -> None:
    assert json.dumps(form.to_json()) == text


def test_a_default_may_be_spelled_out() -> None:
    assert from_json({"form": "low_rank", "rank": 2, "reduce": {"form": "dense"}}) == LowRank(2)


def nested_json(levels: int) -> dict:
    data: dict = {"form": "dense"}
    for _ in range(levels - 1):
        data = {"form": "low_rank", "rank": 1, "expand": data}
    return data


@pytest.mark.parametrize("levels", [MOST_LEVELS + 1, 200, 100_000])
def test_absurd_depth_is_an_input_error(levels: int) -> None:
    with pytest.raises(InputError, match="inside one another"):
        from_json(nested_json(levels))


def test_the_deepest_form_that_is_allowed() -> None:
    form = from_json(nested_json(MOST_LEVELS))
    assert form.levels == MOST_LEVELS
    with pytest.raises(InputError, match="inside one another"):
        LowRank(1, reduce=form)


def test_what_is_wrong_inside_is_an_input_error() -> None:
    with pytest.raises(InputError, match="unknown form 'whole'"):
        from_json({"form": "low_rank", "rank": 2, "reduce": {"form": "whole"}})
    with pytest.raises(InputError, match="JSON object"):
        from_json({"form": "low_rank", "rank": 2, "reduce": 3})
    with pytest.raises(InputError, match="rank 7 is more than a matrix of 6 x 16"):
        LowRank(6, reduce=LowRank(7)).tensors(24, 16)


EXPAND, REDUCE = torch.ones(8, 4), torch.ones(4, 8)


@pytest.mark.parametrize(
    ("form", "given", "text"),
    [
        (LowRank(4), {"expand": EXPAND}, r"missing: \['reduce'\]"),
        (LowRank(4), {"expand": EXPAND, "reduce": REDUCE, "order": EXPAND}, r"unknown: \['order'\]"),
        (LowRank(4), {"expand": EXPAND, "reduce": {"wait": REDUCE}}, r"missing: \['weight'\]"),
        (LowRank(4, expand=LowRank(2)), {"expand": EXPAND, "reduce": REDUCE}, "its low_rank form gave"),
        (
            LowRank(4, expand=LowRank(2)),
            {"expand": LowRank(2).pack({"expand": EXPAND, "reduce": REDUCE}, EXPAND[:, 0]), "reduce": REDUCE},
            r"unknown: \['expand.bias'\]",
        ),
        (Dense(), {"weight": {"weight": EXPAND}}, "must be a tensor"),
        (LowRank(4), {"expand": EXPAND.int(), "reduce": REDUCE.int()}, "dtype"),
    ],
)
def test_wrong_parts_are_not_packed(form: Form, given: dict, text: str) -> None:
    with pytest.raises(KannaError, match=text):
        form.pack(given)


def test_no_rounding_between_the_levels_of_a_merge() -> None:
    """bfloat16 factors multiply out in float32 and are rounded once."""
    form = LowRank(4, reduce=LowRank(3), expand=LowRank(2))
    state = filled(form, 8, 8, False, torch.bfloat16).state_dict()
    wide = {name: tensor.float() for name, tensor in state.items()}
    assert torch.equal(form.merge(state, 8, 8), form.merge(wide, 8, 8).bfloat16())


def test_gradients_copies_and_one_graph() -> None:
    module = filled(DEEP, 24, 16, True)
    x = torch.randn(3, 16, dtype=torch.float64)
    graph = torch.export.export(module, (x,))
    torch.testing.assert_close(graph.module()(x), module(x))
    module(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
