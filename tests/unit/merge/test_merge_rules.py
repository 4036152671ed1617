from fractions import Fraction

import pytest
import torch
from merge_models import by_ties, largest, parts, run

from kanna.errors import InputError
from kanna.methods.merge.rules.counting import Largest, how_many, passes
from kanna.methods.merge.rules.differences import Pruned, TaskArithmetic
from kanna.methods.merge.rules.linear import Linear
from kanna.methods.merge.rules.pruning import trimmed
from kanna.methods.merge.rules.rounding import rounded


def ties(
    name: str,
    count: int,
    dtype: torch.dtype,
    base: int,
    weights: list[float],
    densities: list[float],
    normalize: bool,
    scale: float,
) -> Pruned:
    pruners = [trimmed(density, 0.0, count, dtype) for density in densities]
    return Pruned(name, base, weights, pruners, count, True, normalize, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.001, 0.1, 0.37, 0.5, 0.99])
def test_the_largest_are_found_by_counting_with_the_lowest_index_first(
    dtype: torch.dtype, density: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    steps = torch.randint(-6, 7, (500,), generator=generator) / 8
    fine = torch.randn(500, generator=generator, dtype=torch.float64)
    for values in (steps.to(dtype), fine.to(dtype), torch.zeros(500, dtype=dtype)):
        expected = largest(values.tolist(), density)
        kept = torch.tensor([value != 0 for value in expected])
        for size in (1, 7, 250, 500):
            found = Largest(how_many(density, 500), dtype)
            for number in range(passes(dtype)):
                for part in parts(values, size):
                    found.count(number, part)
            picked = torch.cat([found.pick(part) for part in parts(values, size)])
            assert int(picked.sum()) == how_many(density, 500)
            assert torch.equal(picked & (values != 0), kept)


def test_densities() -> None:
    assert [how_many(d, 1) for d in (0.0, 0.01, 0.5, 1.0)] == [0, 1, 1, 1]
    assert [how_many(d, 10) for d in (0.09, 0.1, 0.19, 0.2, 1.0)] == [1, 1, 1, 2, 10]


def test_ties_by_hand() -> None:
    base = torch.zeros(6)
    models = [
        torch.tensor(values)
        for values in (
            [3.0, -1, 0.2, 4, -2, 0.1],
            [-2.0, 5, 0.3, -4, 1, 6],
            [1.0, 0.5, -7, 4, 3, 0.4],
        )
    ]
    for normalize, expected in ((True, [3.0, 5, -7, 4, 3, 6]), (False, [3.0, 5, -7, 8, 3, 6])):
        operation = ties("w", 6, torch.float32, 0, [0, 1, 1, 1], [0, 0.5, 0.5, 0.5], normalize, 1.0)
        assert run(operation, [base, *models], 6).tolist() == expected
        assert operation.kept == (9, 18)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("densities", [(1.0, 1.0), (0.3, 0.62), (0.0, 0.5), (0.001, 0.001)])
def test_ties_against_loops(normalize: bool, densities: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(8)
    base = torch.randint(-8, 9, (301,), generator=generator) / 16
    models = [base + torch.randint(-5, 6, (301,), generator=generator) / 32 for _ in range(2)]
    weights = [0.75, 0.5]  # sums are exact, so no election hangs on the last bit
    expected = by_ties(
        base.tolist(), [model.tolist() for model in models], weights, densities, normalize, 0.5
    )
    for size in (1, 10, 301):
        operation = ties("w", 301, torch.float32, 0, [0, *weights], [0, *densities], normalize, 0.5)
        found = run(operation, [base, *models], size)
        assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_opposite_differences_elect_the_plus() -> None:
    base, one = torch.zeros(2), torch.tensor([0.5, -0.5])
    operation = ties("w", 2, torch.float32, 0, [0, 1, 1], [0, 1, 1], True, 1.0)
    assert run(operation, [base, one, -one], 2).tolist() == [0.5, 0.5]


def test_weights_of_one_sign_that_cancel_are_named() -> None:
    base, one = torch.zeros(2), torch.tensor([0.5, 0.5])
    operation = ties("the.tensor", 2, torch.float32, 0, [0, 1, -1], [0, 1, 1], True, 1.0)
    with pytest.raises(InputError, match=r"the\.tensor"):
        run(operation, [base, one, -one], 2)


def test_equal_models_give_themselves_bit_for_bit() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    for weights in ([1.0, 0.3, 0.5], [0.1, 0.1, 0.1], [5.0, -3.0, 0.7]):
        assert torch.equal(run(Linear(weights, True), [values] * 3, 64), values)
    assert torch.equal(run(TaskArithmetic(0, [0, 0.3, 0.9], False, 0.7), [values] * 3, 64), values)
    operation = ties("w", 1000, torch.float32, 0, [0, 0.3, 0.9], [0, 0.5, 1.0], True, 0.7)
    assert torch.equal(run(operation, [values] * 3, 64), values)


def test_sums_against_float64() -> None:
    generator = torch.Generator().manual_seed(2)
    base, a, b = (torch.randn(500, generator=generator) for _ in range(3))
    wide = [one.double() for one in (base, a, b)]
    cases = [
        (Linear([1.0, 0.3, 0.5], True), (wide[0] + 0.3 * wide[1] + 0.5 * wide[2]) / 1.8),
        (Linear([1.0, 0.3, -0.5], False), wide[0] + 0.3 * wide[1] - 0.5 * wide[2]),
        (Linear([0.0, 2.0, 0.0], True), wide[1]),
        (
            TaskArithmetic(0, [0, 0.3, 0.5], False, 0.7),
            wide[0] + 0.7 * (0.3 * (wide[1] - wide[0]) + 0.5 * (wide[2] - wide[0])),
        ),
        (
            TaskArithmetic(0, [0, 0.3, 0.5], True, 1.0),
            wide[0] + (0.3 * (wide[1] - wide[0]) + 0.5 * (wide[2] - wide[0])) / 0.8,
        ),
        (TaskArithmetic(0, [0, 0.0, 0.0], True, 1.0), wide[0]),
    ]
    for operation, expected in cases:
        found = run(operation, [base, a, b], 37)
        assert float((found.double() - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_float64_is_rounded_once() -> None:
    """By way of float32 the first is a tie, which goes to even; it is none."""
    values = [1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, -(1 + 2.0**-8 + 2.0**-40), 1 + 2.0**-8, 0.0]
    generator = torch.Generator().manual_seed(0)
    values += torch.randn(200, generator=generator, dtype=torch.float64).tolist()
    for dtype, bits in ((torch.bfloat16, 8), (torch.float16, 11)):
        found = rounded(torch.tensor(values, dtype=torch.float64), dtype)
        for value, written in zip(values, found.tolist(), strict=True):
            assert written == nearest_even(value, bits)


def nearest_even(value: float, bits: int) -> float:
    """Rounded to so many significant bits, with whole numbers alone."""
    if value == 0:
        return 0.0
    size = Fraction(abs(value))
    unit = Fraction(1)
    while size / unit >= 2**bits:
        unit *= 2
    while size / unit < 2 ** (bits - 1):
        unit /= 2
    return float(round(size / unit) * unit) * (1 if value > 0 else -1)
