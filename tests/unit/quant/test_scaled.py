"""The product whose scales are learnt: gradients against dense autograd, and what is kept of the weights."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kanna.quant import scaled
from kanna.quant.grid import Codes, Grid
from kanna.quant.scaled import scaled_product

SHAPES = [(11, 24, 8), (7, 20, 8), (5, 33, None)]  # rows, columns, group: whole, short last, one group


def drawn(m: int, n: int, grid: Grid, dtype: torch.dtype = torch.float64) -> tuple[Codes, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(m * n + grid.bits)
    groups = grid.groups(n)
    codes = torch.randint(0, grid.top + 1, (m, n), generator=draw).to(torch.uint8)
    zero = torch.randint(0, grid.top + 1, (m, groups), generator=draw).to(torch.uint8)
    zero = torch.full_like(zero, grid.middle) if grid.symmetric else zero
    scale = torch.rand(m, groups, generator=draw, dtype=dtype) + 0.1
    return Codes(grid, codes, scale, zero), Codes(grid, codes, scale, zero).packed()


def dense(x: Tensor, change: Tensor, codes: Codes) -> Tensor:
    """Written out: every weight by itself."""
    columns = codes.codes.shape[1]
    size = codes.grid.size(columns)
    rows = []
    for o in range(len(codes.codes)):
        d = change[o]
        weights = [
            codes.scale[o, i // size]
            * (1 + (d if change.dim() == 1 else d[i // size]))
            * (float(codes.codes[o, i]) - float(codes.zero[o, i // size]))
            for i in range(columns)
        ]
        rows.append(torch.stack(weights))
    return functional.linear(x, torch.stack(rows))


@pytest.mark.parametrize("by", ["channel", "group"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("m", "n", "group"), SHAPES)
@pytest.mark.parametrize("at_once", [1 << 22, 48])
def test_gradients_are_those_of_dense_autograd(
    by: str, symmetric: bool, m: int, n: int, group: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaled, "_AT_ONCE", at_once)
    grid = Grid(3, group, symmetric)
    codes, packed = drawn(m, n, grid)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, n, generator=draw, dtype=torch.float64, requires_grad=True)
    size = (m,) if by == "channel" else (m, grid.groups(n))
    change = (torch.randn(size, generator=draw, dtype=torch.float64) / 4).requires_grad_()
    zero = None if symmetric else codes.zero
    g = torch.randn(2, 5, m, generator=draw, dtype=torch.float64)

    y = scaled_product(x, change, packed["weight_packed"], codes.scale, zero, grid)
    expected = dense(x, change, codes)
    assert torch.allclose(y, expected, rtol=1e-12)
    found = torch.autograd.grad(y, (x, change), g)
    for one, other in zip(found, torch.autograd.grad(expected, (x, change), g), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-12

    again = scaled_product(x, change, packed["weight_packed"], codes.scale, zero, grid, keep_inputs=True)
    for one, other in zip(torch.autograd.grad(again, (x, change), g), found, strict=True):
        assert torch.allclose(one, other, rtol=1e-11)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return scaled_product(a, b, packed["weight_packed"], codes.scale, zero, grid)

    assert torch.autograd.gradcheck(product, (x, change))


@pytest.mark.parametrize("by", ["channel", "group"])
def test_two_small_batches_are_one(by: str) -> None:
    """And inputs that need no gradient, as those of a first layer, get none."""
    grid = Grid(4, 8)
    codes, packed = drawn(6, 16, grid)
    x = torch.randn(4, 3, 16, dtype=torch.float64)
    change = torch.zeros((6,) if by == "channel" else (6, 2), dtype=torch.float64, requires_grad=True)

    def run(some: Tensor) -> None:
        y = scaled_product(some, change, packed["weight_packed"], codes.scale, codes.zero, grid)
        y.square().sum().backward()  # type: ignore[no-untyped-call]

    run(x)
    assert change.grad is not None and x.grad is None
    whole = change.grad.clone()
    change.grad = None
    run(x[:2])
    run(x[2:])
    assert torch.allclose(change.grad, whole, rtol=1e-12)


def test_rows_whose_scales_vanish_have_their_gradient() -> None:
    """1 + d is nothing there: outputs are zero, and d still has to move."""
    grid = Grid(4, 8)
    codes, packed = drawn(6, 16, grid)
    x = torch.randn(5, 16, dtype=torch.float64)
    change = torch.tensor([0.0, -1.0, 0.5, -1.0 + 1e-9, -2.0, 0.1], dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 6, dtype=torch.float64)
    y = scaled_product(x, change, packed["weight_packed"], codes.scale, codes.zero, grid)
    (found,) = torch.autograd.grad(y, change, g)
    (expected,) = torch.autograd.grad(dense(x, change, codes), change, g)
    assert torch.allclose(found, expected, rtol=1e-10)
    assert expected[1].abs() > 1e-3  # a guard that puts nought there would be seen


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("by", ["channel", "group"])
def test_in_fewer_bits(by: str, dtype: torch.dtype, most: float) -> None:
    grid = Grid(4, 16)
    codes, packed = drawn(24, 64, grid)
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(16, 64, generator=draw, dtype=torch.float64)
    g = torch.randn(16, 24, generator=draw, dtype=torch.float64)
    change = torch.zeros((24,) if by == "channel" else (24, 4), dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    expected = torch.autograd.grad(dense(x, change, codes), (x, change), g)
    low, d = x.detach().to(dtype).requires_grad_(), change.detach().float().requires_grad_()
    y = scaled_product(low, d, packed["weight_packed"], codes.scale.float(), codes.zero, grid)
    for one, other in zip(torch.autograd.grad(y, (low, d), g.to(dtype)), expected, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < most


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("by", ["channel", "group"])
def test_nothing_dense_is_kept(by: str, bits: int) -> None:
    """Of the weights no more than their codes, their scales and a tenth is kept for the way back."""
    m, n, tokens, grid = 256, 512, 4, Grid(bits, 256)
    codes, packed = drawn(m, n, grid, torch.float32)
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = value.nbytes
        return value

    x = torch.randn(tokens, n, requires_grad=True)
    change = torch.zeros((m,) if by == "channel" else (m, 2), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        y = scaled_product(x, change, packed["weight_packed"], codes.scale, codes.zero, grid)
    y.sum().backward()
    activations = x.nbytes if by == "group" else y.nbytes
    most = 1.1 * m * n * bits / 8 + 2 * change.nbytes
    assert 0 < sum(kept.values()) - activations <= most
