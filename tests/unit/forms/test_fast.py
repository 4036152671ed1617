"""Products with 4-bit codes: when torch's kernel makes them, and that what it reads is never stale."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from kanna.errors import InputError
from kanna.forms import Int, IntLinear, LowRank, Rows, fast, integer
from kanna.forms.integer import untimed
from kanna.quant.grid import Codes, Grid

M, N, GROUP = 48, 128, 32
BF16 = torch.bfloat16


def layer(
    bits: int = 4, group: int | None = GROUP, bias: bool = False, seed: int = 0, m: int = M
) -> IntLinear:
    draw = torch.Generator().manual_seed(seed)
    grid = Grid(bits, group)
    module = Int(bits, group).build(m, N, bias, BF16)
    assert isinstance(module, IntLinear)
    codes = torch.randint(0, grid.top + 1, (m, N), generator=draw).to(torch.uint8)
    scale = torch.rand(m, grid.groups(N), generator=draw) / 10 + 0.01
    zero = torch.randint(0, grid.top + 1, scale.shape, generator=draw).to(torch.uint8)
    state = {**module.state_dict(), **Codes(grid, codes, scale, zero).packed()}
    if bias:
        state["bias"] = torch.randn(m, generator=draw).to(BF16)
    module.load_state_dict(state)
    return module.requires_grad_(False)


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, N, generator=torch.Generator().manual_seed(len(shape))).to(BF16)


def wide(module: IntLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in float64, and what roundings to bfloat16 may change them by."""
    form, state = module.form, dict(module.state_dict())
    assert isinstance(form, Int)
    codes = form.codes(state, N)
    s, z = codes.grid.spread(codes.scale, N).double(), codes.grid.spread(codes.zero, N).double()
    weight = s * (codes.codes.double() - z)
    y = x.double() @ weight.T
    off = x.double().abs() @ (2 * weight.abs() + (s * (8 - z)).abs()).T + 3 * y.abs()
    if module.bias is not None:
        y, off = y + module.bias.double(), off + 2 * module.bias.double().abs()
    return y, off * 2**-8 * 1.02


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_FASTER", {})
    monkeypatch.delenv(fast.FORCE, raising=False)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fast.FORCE, "on")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one wherever a second copy is made."""
    seen: list[int] = []
    original = integer.laid_out

    def counted(codes: Codes, group: int) -> object:
        seen.append(group)
        return original(codes, group)

    monkeypatch.setattr(integer, "laid_out", counted)
    return seen


Off = Callable[[nn.Module, Tensor], Tensor]


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> Off:
    """Outputs with the weight multiplied out."""

    def run(module: nn.Module, x: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setenv(fast.FORCE, "off")
            with torch.no_grad():
                found: Tensor = module(x)
        return found

    return run


@pytest.mark.parametrize("shape", [(), (1,), (64,), (2, 5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [32, 64, None])
def test_both_ways_are_right(
    on: None, off: Off, shape: tuple[int, ...], bias: bool, group: int | None
) -> None:
    module, x = layer(group=group, bias=bias), inputs(*shape)
    assert module.kernel(x) is not None
    y, room = wide(module, x)
    for found in (module(x), off(module, x)):
        assert found.dtype == BF16 and found.shape == (*shape, M)
        assert ((found - y).abs() <= room).all()


def test_inside_other_forms(on: None, off: Off) -> None:
    """Factors and slices of rows are layers of their own."""
    form = Rows((((0, 2, 3, 16), Int(4, 32)), ((2, 1, 3, 16), LowRank(16, reduce=Int(4, 32)))))
    module = form.build(M, N, dtype=BF16).requires_grad_(False)
    for one in module.modules():
        if isinstance(one, IntLinear):
            one.load_state_dict(layer(m=one.out_features).state_dict())
            assert one.kernel(inputs(3)) is not None
    module.get_submodule("parts.1.expand").weight.normal_()  # type: ignore[operator, union-attr]
    x = inputs(3)
    y, other = module(x), off(module, x)
    assert not torch.equal(y, other) and torch.allclose(
        y, other, rtol=0.05, atol=0.05 * float(other.abs().max())
    )


def test_rows_of_a_batch_with_changes_of_their_own(on: None) -> None:
    changes = torch.stack([torch.zeros(M), torch.linspace(-0.5, 1, M)])
    module, x = layer(bias=True), inputs(2, 5)
    alone = layer(bias=True)
    alone.change(changes[1])
    module.by_row(changes)
    y, room = wide(layer(bias=True), x)
    assert ((module(x)[0] - y[0]).abs() <= room[0]).all()
    torch.testing.assert_close(module(x)[1], alone(x)[1], rtol=0.05, atol=0.05)


class Subclass(Tensor):
    pass


def test_where_the_weight_is_multiplied_out(
    on: None, off: Off, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit as if there were no kernel, and no second copy is made."""
    module, x = layer(), inputs(5)
    learning = layer()
    learning.change(torch.zeros(M), learn=True)
    offloaded = layer()
    offloaded._hf_hook = object()  # type: ignore[assignment]
    with torch.inference_mode():
        uncounted = layer()
    with torch.no_grad():
        for one, some in (
            (layer(bits=3), x),
            (layer(m=40), x),
            (layer(group=48), x),
            (module, inputs(65)),
            (module, x[:0]),
            (module, x.as_subclass(Subclass)),
            (module.float(), x.float()),
            (learning, x),
            (offloaded, x),
            (uncounted, x),
        ):
            assert one.kernel(some) is None and torch.equal(one(some), off(one, some))
    wanted = x.clone().requires_grad_()
    with torch.autocast("cpu", BF16):
        assert module.kernel(x) is None
    assert module.kernel(wanted) is None
    monkeypatch.setenv(fast.FORCE, "off")
    assert module.kernel(x) is None and made == []


def test_gradients_of_inputs_stay(on: None) -> None:
    module = layer()
    x = inputs(5).requires_grad_()
    module(x).sum().backward()
    weight = module.form.merge(module.state_dict(), M, N).float()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), weight.sum(0).expand(5, N), rtol=0.02, atol=0.02)
    assert not module(x.detach()).requires_grad


def test_scales_that_the_kernel_would_overflow_on(on: None, off: Off) -> None:
    module, x = layer(), inputs(1)
    with torch.no_grad():
        module.weight_scale[0], module.weight_packed[0] = 1e38, 0x33333333
        getattr(module, integer.ZERO)[0] = 3
    found = module(x)
    assert module.kernel(x) is None and found.isfinite().all() and torch.equal(found, off(module, x))


def _loaded(module: IntLinear, assign: bool) -> None:
    module.load_state_dict(layer(seed=7).state_dict(), strict=False, assign=assign)


def _written(module: IntLinear, name: str, by: Callable[[Tensor], object]) -> None:
    with torch.no_grad():
        by(getattr(module, name))


def _in_inference(module: IntLinear) -> None:
    with torch.inference_mode():
        module.weight_scale.mul_(2)


def _cast(module: IntLinear) -> None:
    module.weight_scale.mul_(1.003)
    module.to(BF16)


def _moved_data(module: IntLinear) -> None:
    assert module.scale_change is not None
    module.scale_change.data = module.scale_change.data + 1


CHANGES: dict[str, Callable[[IntLinear], object]] = {
    "a set of channels": lambda one: one.change(torch.full((M,), 0.5)),
    "a set of groups": lambda one: one.change(torch.full((M, N // GROUP), 0.5)),
    "no set any more": lambda one: one.change(None),
    "a set put back as it was": lambda one: setattr(one, "scale_change", nn.Parameter(torch.ones(M), False)),
    "a set that is written to": lambda one: _written(one, "scale_change", lambda d: d.fill_(2)),
    "a set with other data": _moved_data,
    "a state that is loaded": lambda one: _loaded(one, assign=False),
    "a state that is assigned": lambda one: _loaded(one, assign=True),
    "codes that are written to": lambda one: _written(one, "weight_packed", lambda t: t.bitwise_not_()),
    "zero-points that are written to": lambda one: _written(one, "weight_zero_point", lambda t: t.add_(1)),
    "a view that is written to": lambda one: one.weight_scale.view(-1).detach().mul_(2),
    "in inference mode": _in_inference,
    "other scales": lambda one: setattr(one, "weight_scale", one.weight_scale * 2),
    "scales that were cast": _cast,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_second_copy_is_never_stale(on: None, what: str) -> None:
    """Before and after, outputs are those of a layer that never had another state."""
    module, x = layer(), inputs(3)
    module.change(torch.linspace(-0.3, 0.3, M))
    before = module(x)
    assert module.kernel(x) is module.kernel(x) is not None
    CHANGES[what](module)
    fresh = layer(seed=1)
    fresh.weight_packed, fresh.weight_scale = module.weight_packed.clone(), module.weight_scale.clone()
    fresh.weight_zero_point = getattr(module, integer.ZERO).clone()
    change = module.scale_change
    fresh.scale_change = None if change is None else nn.Parameter(change.detach().clone(), False)
    assert fresh.kernel(x) is not None and module.kernel(x) is not None
    after = module(x)
    assert torch.equal(after, fresh(x)) and not torch.equal(after, before)


def test_addresses_that_are_used_again(on: None) -> None:
    """A set that is gone leaves its place in memory to the next one."""
    module, x = layer(), inputs(1)
    plain = module(x).float()
    for step in range(8):
        module.change(torch.full((M,), float(step)))
        torch.testing.assert_close(module(x).float(), plain * (1 + step), rtol=0.03, atol=0.03 * (1 + step))


def test_one_copy_for_all_calls_which_is_not_saved(on: None, made: list[int]) -> None:
    module, x = layer(), inputs(1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    size = len(_saved(module))
    y = module(x)
    assert torch.equal(module(x), y) and module(inputs(7)).shape == (7, M) and made == [GROUP]
    after = module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(
        name.startswith("_second") for name, _ in (*module.named_buffers(), *module.named_parameters())
    )
    assert len(_saved(module)) == size
    twin, read = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    assert made == [GROUP] and twin._second._held is None and read._second._held is None
    twin.change(torch.ones(M))
    assert torch.equal(read(x), y) and torch.equal(module(x), y) and not torch.equal(twin(x), y)
    module.to(BF16)
    assert module._second._held is None


def _saved(module: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(module, file)
    return file.getvalue()


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Pretends times of the two ways; what it gives grows by the way of each call that is timed."""

    def pretend(kernel: float, out: float) -> list[str]:
        seen: list[str] = []

        def timed(product: Callable[[], object]) -> float:
            product()
            seen.append("out" if "_multiplied_out" in repr(product) else "kernel")
            return kernel if seen[-1] == "kernel" else out

        monkeypatch.setattr(fast, "_seconds", timed)
        return seen

    return pretend


def test_what_is_faster_is_measured_once(
    seconds: Callable[..., list[str]], off: Off, made: list[int]
) -> None:
    """Of a shape, a number of tokens and of threads; all layers of a process know it."""
    seen = seconds(1.0, 100.0)
    one, other = layer(), layer(seed=1)
    for module in (one, other, one):
        assert module.kernel(inputs(1)) is not None
    assert seen == ["kernel", "out"] and len(made) == 2
    assert one.kernel(inputs(3)) is not None and one.kernel(inputs(4)) is not None and len(seen) == 4
    assert one.kernel(inputs(5)) is not None and len(seen) == 6
    assert layer(m=32).kernel(inputs(1)) is not None and len(seen) == 8
    assert not torch.equal(one(inputs(1)), off(one, inputs(1)))


def test_where_multiplying_out_is_faster_no_copy_stays(seconds: Callable[..., list[str]], off: Off) -> None:
    seen = seconds(100.0, 1.0)
    module, x = layer(), inputs(1)
    assert torch.equal(module(x), off(module, x)) and module._second._held is None
    assert torch.equal(module(x), off(module, x)) and len(seen) == 2
    seconds(1.0, 100.0)
    assert module.kernel(inputs(2)) is not None and module.kernel(x) is None


def test_near_each_other_more_calls_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow call of the faster one is not enough."""
    times: Iterator[float] = iter([3.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    monkeypatch.setattr(fast, "_seconds", lambda product: next(times))
    assert layer().kernel(inputs(1)) is not None


def test_what_is_forced_is_not_measured(on: None, seconds: Callable[..., list[str]]) -> None:
    seen = seconds(100.0, 1.0)
    assert layer().kernel(inputs(1)) is not None and seen == []


def test_where_equal_input_has_to_give_equal_bits(
    seconds: Callable[..., list[str]], off: Off, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured, and what was is not asked."""
    seen = seconds(1.0, 100.0)
    module, x = layer(), inputs(1)
    assert module.kernel(x) is not None
    untimed(nn.Sequential(module))
    assert torch.equal(module(x), off(module, x)) and len(seen) == 2
    monkeypatch.setenv(fast.FORCE, "on")
    assert module.kernel(x) is not None


def test_what_is_compiled_or_traced_is_multiplied_out(on: None, off: Off, made: list[int]) -> None:
    module, x = layer(), inputs(2)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), off(module, x))
        traced = torch.jit.trace(module, (x,), check_trace=False)
        assert "int4pack" not in str(traced.inlined_graph) and torch.equal(traced(x), off(module, x))
    assert made == []


@pytest.mark.parametrize("said", ["yes", "ON", "0"])
def test_another_word_in_the_environment(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fast.FORCE, said)
    with pytest.raises(InputError, match=f"KANNA_INT4={said}.*") as caught:
        Int(4, GROUP).build(M, N)
    assert "on or off" in caught.value.remedy
