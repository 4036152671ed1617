"""torch's kernel for 4-bit codes, against weights written out one by one in float64."""

import pytest
import torch
from torch import Tensor

from kanna.quant.grid import Codes, Grid
from kanna.quant.int4 import Int4, group_of, laid_out

ROUNDING = 2**-8  # of a number in bfloat16
# Rows, columns, group, and the group that the kernel is told.
HELD = [
    (16, 32, 32, 32),
    (48, 128, 64, 64),
    (80, 256, 128, 128),
    (64, 512, 256, 256),
    (32, 192, None, 64),
    (272, 288, None, 32),
    (16, 96, 96, 32),
    (16, 96, 128, 32),
    (32, 1024, 512, 256),
]


def drawn(m: int, n: int, group: int | None, symmetric: bool) -> Codes:
    grid = Grid(4, group, symmetric)
    draw = torch.Generator().manual_seed(m * n)
    codes = torch.randint(0, 16, (m, n), generator=draw).to(torch.uint8)
    scale = torch.rand(m, grid.groups(n), generator=draw) + 0.1
    zero = torch.randint(0, 16, scale.shape, generator=draw).to(torch.uint8)
    return Codes(grid, codes, scale, torch.full_like(zero, 8) if symmetric else zero)


def by_hand(codes: Codes, n: int) -> tuple[Tensor, Tensor]:
    """Each weight, and by how much the kernel may miss it, outputs in bfloat16 included."""
    m, size = len(codes.codes), codes.grid.size(n)
    q, z, s = codes.codes.tolist(), codes.zero.tolist(), codes.scale.tolist()
    weight = [[s[o][i // size] * (q[o][i] - z[o][i // size]) for i in range(n)] for o in range(m)]
    offset = [[s[o][i // size] * abs(8 - z[o][i // size]) for i in range(n)] for o in range(m)]
    wide = torch.tensor(weight, dtype=torch.float64)
    off = 2 * wide.abs() + torch.tensor(offset, dtype=torch.float64)
    return wide, ROUNDING * (1 + 2 * ROUNDING) * off


def held(codes: Codes) -> Int4:
    m, n = codes.codes.shape
    group = group_of(codes.grid, m, n)
    assert group is not None
    found = laid_out(codes, group)
    assert found is not None
    return found


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("m", "n", "group", "told"), HELD)
def test_every_weight_by_itself(m: int, n: int, group: int | None, told: int, symmetric: bool) -> None:
    """Inputs that are 1 in one place show the matrix: a wrong row, group or zero-point is off by a scale."""
    codes = drawn(m, n, group, symmetric)
    found = held(codes)
    assert found.group == told
    shown = torch.cat([found.product(some) for some in torch.eye(n, dtype=torch.bfloat16).split(16)])
    weight, off = by_hand(codes, n)
    assert shown.dtype == torch.bfloat16
    assert ((shown.double().T - weight).abs() <= off).all()
    assert (off < codes.grid.spread(codes.scale, n) / 5).all()  # so that no neighbour passes for it


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (1, 2, 16)])
def test_products_of_any_shape(shape: tuple[int, ...]) -> None:
    codes = drawn(48, 128, 64, False)
    x = torch.randn(*shape, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight, off = by_hand(codes, 128)
    found, expected = held(codes).product(x), x.double() @ weight.T
    room = x.double().abs() @ off.T + ROUNDING * expected.abs() + 1e-6
    assert found.shape == (*shape, 48) and ((found - expected).abs() <= room).all()


def test_a_code_at_its_zero_point_is_nothing() -> None:
    """Where 8 - z is a power of two, to the bit; otherwise but for its rounding."""
    zero = torch.arange(16, dtype=torch.uint8)[:, None]
    scale = torch.full((16, 1), 0.1234567)
    found = held(Codes(Grid(4, 32), zero.expand(16, 32).contiguous(), scale, zero))
    seen = found.product(torch.eye(32, dtype=torch.bfloat16)[:1]).flatten().double().abs()
    exact = [abs(8 - z) in (0, 1, 2, 4, 8) for z in range(16)]
    assert not seen[torch.tensor(exact)].any() and seen.max() <= ROUNDING * 8 * 0.1235


def test_what_the_kernel_cannot_hold() -> None:
    for grid, m, n in (
        (Grid(3, 32), 16, 64),
        (Grid(8, 32), 16, 64),
        (Grid(4, 32), 24, 64),
        (Grid(4, 32), 16, 80),
        (Grid(4, 48), 16, 96),
        (Grid(4, 16), 16, 64),
        (Grid(4, None), 16, 100),
    ):
        assert group_of(grid, m, n) is None


def test_scales_that_would_overflow() -> None:
    """s (q - z) is finite where q is z, while s (q - 8) + s (8 - z) is not."""
    codes = drawn(16, 32, 32, False)
    huge = Codes(codes.grid, codes.codes, torch.full((16, 1), 1e38), codes.zero)
    assert laid_out(huge, 32) is None
