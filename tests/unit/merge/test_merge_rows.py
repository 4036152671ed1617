"""What goes row by row, and norms that are matched, against definitions in float64 on whole tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from merge_models import parts, run, weights
from torch import Tensor

import kanna
from kanna.methods.merge.known import BY_CHANCE, BY_NORM
from kanna.methods.merge.rules.counting import Quantiles
from kanna.methods.merge.rules.differences import Pruned
from kanna.methods.merge.rules.fusion import Fusion
from kanna.methods.merge.rules.lines import ModelStockLines, SphericalLines
from kanna.methods.merge.rules.operation import Operation
from kanna.methods.merge.rules.pruning import ByRank, Pruner, dropped, ranked, trimmed
from kanna.methods.merge.rules.spherical import NUSLERP_PARALLEL

ROWS, ROW = 60, 75
COUNT = ROWS * ROW


def matrices(number: int, near: float = 0.4) -> list[Tensor]:
    """Models that differ from the first, with some rows and columns that do not, flat."""
    random = torch.Generator().manual_seed(4)
    base = torch.randn(ROWS, ROW, generator=random)
    changes = [near * torch.randn(ROWS, ROW, generator=random) for _ in range(number - 1)]
    for change in changes:
        change[7], change[:, 11] = 0, 0
    return [base.flatten(), *((base + change).flatten() for change in changes)]


def by_rows(make: type[Operation] | object, models: list[Tensor]) -> Tensor:
    """Equal bytes for chunks of any number of rows."""
    first, *others = (run(make(), models, rows * ROW) for rows in (1, 13, ROWS))  # type: ignore[operator]
    assert all(torch.equal(first, other) for other in others)
    return first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_of_either_sign_are_those_of_sorting(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(2)
    spread = torch.randn(1001, generator=random, dtype=torch.float64).pow(5).to(dtype)
    steps = (torch.randint(-3, 4, (1000,), generator=random) / 4).to(dtype)
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    for values in (spread, steps, spread[:1], spread[:2], torch.zeros(7, dtype=dtype)):
        expected = np.quantile(values.double().numpy(), shares)
        for size in (1, 333, 1001):
            counted = Quantiles(shares, len(values), dtype)
            for number in range(counted.passes):
                for part in parts(values, size):
                    counted.count(number, part)
            assert counted.values() == pytest.approx(expected.tolist(), rel=1e-14)


def keep(density: float, spread: float, rescale: float, seed: int) -> Pruner:
    pruner = ranked(density, spread, ROW, COUNT, rescale, str(seed))
    assert pruner is not None
    return pruner


def test_della_keeps_the_larger_more_often_within_each_row() -> None:
    """The share that survives over many draws, by rank; ranks are those within a row."""
    (values,) = matrices(1)
    values = values * torch.linspace(0.1, 30, ROWS).repeat_interleave(ROW)  # rows of very different sizes
    draws = 150
    survived = torch.stack([keep(0.5, 0.3, 0.0, seed).pick(values) for seed in range(draws)]).double().mean(0)
    order = values.view(ROWS, ROW).abs().argsort(1, descending=True)
    of_rank = survived.view(ROWS, ROW).gather(1, order).mean(0)
    expected = torch.linspace(0.8, 0.2, ROW, dtype=torch.float64)
    assert float((of_rank - expected).abs().max()) < 5 * (0.25 / draws / ROWS) ** 0.5
    assert float(survived.view(ROWS, ROW).mean(1).sub(0.5).abs().max()) < 0.02


def test_della_scales_each_survivor_by_its_own_probability() -> None:
    (values,) = matrices(1)
    picked = keep(0.4, 0.2, BY_CHANCE, 3).pick(values)
    order = values.view(ROWS, ROW).abs().argsort(1, descending=True)
    chances = torch.empty(ROWS, ROW, dtype=torch.float64)
    chances.scatter_(1, order, torch.linspace(0.6, 0.2, ROW, dtype=torch.float64).expand(ROWS, ROW))
    stays = picked > 0
    assert torch.equal(stays, keep(0.4, 0.2, 0.0, 3).pick(values))
    assert torch.allclose(picked[stays], (1 / chances.flatten()).float()[stays])
    mean = torch.stack([keep(0.4, 0.2, BY_CHANCE, seed).pick(values) for seed in range(100)]).mean(0) * values
    assert float((mean - values).abs().mean()) < 0.25 * float(values.abs().mean())


def test_della_of_chunks_and_of_rows_of_one() -> None:
    models = matrices(3)

    def make() -> Pruned:
        pruners = [None, keep(0.5, 0.2, BY_CHANCE, 1), keep(0.6, 0.2, BY_CHANCE, 2)]
        return Pruned("w", 0, [0, 0.5, 0.7], pruners, COUNT, True, True, 1.0)

    by_rows(make, models)
    alone = ByRank(0.3, 0.2, 1, 4000, False, "k").pick(torch.randn(4000))
    assert float(alone.float().mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("kind", ["dare", "della", "ties", "breadcrumbs"])
def test_norms_are_matched(kind: str) -> None:
    """What survives has the sum of magnitudes of all, in each tensor, whatever the chunks."""
    base, model = matrices(2)

    def make() -> Pruned:
        pruner = {
            "dare": lambda: dropped(0.3, COUNT, BY_NORM, "k"),
            "della": lambda: ranked(0.3, 0.1, ROW, COUNT, BY_NORM, "k"),
            "ties": lambda: trimmed(0.3, 0.0, COUNT, torch.float32, True),
            "breadcrumbs": lambda: trimmed(0.3, 0.05, COUNT, torch.float32, True),
        }[kind]()
        return Pruned("w", 0, [0.0, 1.0], [None, pruner], COUNT, False, False, 1.0)

    zero = torch.zeros(COUNT)
    change = model - base
    found = by_rows(make, [zero, change]) if kind == "della" else run(make(), [zero, change], COUNT)
    stays = found != 0
    assert 0.25 < float(stays.float().mean()) < 0.35
    assert float(found.abs().double().sum()) == pytest.approx(float(change.abs().double().sum()), rel=1e-6)
    factor = found[stays] / change[stays]
    assert torch.allclose(factor, factor[:1])


def arcs(x: Tensor, y: Tensor, t: float) -> Tensor:
    """Of each row, in float64."""
    rows = []
    for one, other in zip(x.double(), y.double(), strict=True):
        size = one.norm() * other.norm()
        cosine = one @ other / size if size else torch.tensor(0.0, dtype=torch.float64)
        angle = torch.acos(cosine.clamp(-1, 1))
        if cosine.abs() > 1 - 1e-8:
            rows.append((1 - t) * one + t * other)
        else:
            rows.append((torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * other) / torch.sin(angle))
    return torch.stack(rows)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_arcs_of_rows_and_columns(columns: bool, with_base: bool) -> None:
    base, x, y = matrices(3)
    place = 0 if with_base else -1
    found = by_rows(
        lambda: SphericalLines(1, 2, place, 0.3, NUSLERP_PARALLEL, ROW, columns), [base, x, y]
    ).view(ROWS, ROW)
    lines = [one.double().view(ROWS, ROW) for one in (x, y, base)]
    first, second, start = (one.T for one in lines) if columns else lines
    expected = start + arcs(first - start, second - start, 0.3) if with_base else arcs(first, second, 0.3)
    expected = expected.T if columns else expected
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    same = run(SphericalLines(0, 1, -1, 0.3, NUSLERP_PARALLEL, ROW, columns), [x, x], COUNT)
    assert torch.equal(same, x)


def test_model_stock_of_rows() -> None:
    models = matrices(4)
    found = by_rows(lambda: ModelStockLines(0, 4, ROW), models).view(ROWS, ROW)
    base, *others = (one.double().view(ROWS, ROW) for one in models)
    ratios = set()
    for number in range(ROWS):
        changes = [one[number] - base[number] for one in others]
        pairs = [(0, 1), (0, 2), (1, 2)]
        sizes = [changes[a].norm() * changes[b].norm() for a, b in pairs]
        cosines = [
            float(changes[a] @ changes[b] / size) if size else 0.0
            for (a, b), size in zip(pairs, sizes, strict=True)
        ]
        cosine = max(0.0, sum(cosines) / 3)
        ratio = 3 * cosine / (1 + 2 * cosine)
        ratios.add(ratio)
        expected = base[number] + ratio * sum(changes) / 3
        assert float((found[number] - expected).abs().max()) < 1e-6 * float(base.abs().max())
    assert len(ratios) > ROWS // 4


def test_quartiles_of_fusion_are_entries() -> None:
    """Of few entries the lower neighbour is another threshold than what lies between two."""
    matters = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 10.0, 7.5])
    counted = Quantiles((0.25, 0.5, 0.75), 8, torch.float32, lower=True)
    for number in range(counted.passes):
        counted.count(number, matters)
    assert counted.values() == [1.0, 3.0, 7.5]


def test_fusion_takes_the_changes_that_matter() -> None:
    base, model = matrices(2)
    changed = torch.arange(COUNT) % 9 == 0
    model = torch.where(changed, model + 2, model)
    found = by_rows(lambda: Fusion(0, 1, ROW, COUNT, torch.float32), [base, model])
    p, q = (torch.softmax(one.double().view(ROWS, ROW), 1) for one in (model, base))
    matters = (model - base).abs().double() * (p * (p / q).log()).sum(1).repeat_interleave(ROW)
    first, median, third = np.quantile(matters.numpy(), (0.25, 0.5, 0.75), method="lower")
    expected = torch.where(matters >= median + 1.5 * (third - first), model, base)
    assert int((found != expected).sum()) <= 2  # next to the threshold
    assert 0 < int((found != base).sum()) < COUNT // 2


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("della", {"density": 0.6, "epsilon": 0.2}),
        ("della_linear", {"density": 0.6, "epsilon": 0.2, "rescale": "l1"}),
        ("ties", {"density": 0.5, "rescale": "l1"}),
        ("dare_ties", {"density": 0.5, "rescale": "l1"}),
        ("nuslerp", {"nuslerp_flatten": False}),
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("model_stock", {"filter_wise": True}),
        ("arcee_fusion", {}),
    ],
)
def test_recipes_run(
    method: str, parameters: dict[str, object], models: dict[str, Path], tmp_path: Path
) -> None:
    names = ("a",) if method == "arcee_fusion" else ("a", "b")
    weighted = method not in ("arcee_fusion", "model_stock")
    listed = [
        {"model": str(models[name]), **({"parameters": {"weight": 0.5}} if weighted else {})}
        for name in names
    ]
    given = {
        "merge_method": method,
        "models": listed,
        "parameters": parameters,
        "base_model": str(models["base"]),
    }
    assert kanna.merge(given, tmp_path / "out").passed
    # Chunks of the least size change nothing.
    assert kanna.merge(given, tmp_path / "small", max_memory=1_002_000_000).passed
    first, second = weights(tmp_path / "out"), weights(tmp_path / "small")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("columns", [False, True])
def test_which_lines_of_a_matrix_have_an_arc(columns: bool, models: dict[str, Path], tmp_path: Path) -> None:
    """Rows; with `nuslerp_row_wise` columns, whatever its name says: that is what mergekit does."""
    listed = [{"model": str(models[name]), "parameters": {"weight": w}} for name, w in (("a", 3), ("b", 1))]
    flags = {"nuslerp_flatten": False, "nuslerp_row_wise": columns}
    kanna.merge({"merge_method": "nuslerp", "models": listed, "parameters": flags}, tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    found, first, second = (
        weights(path)[name].double() for path in (tmp_path / "out", models["a"], models["b"])
    )
    expected = arcs(first.T, second.T, 0.25).T if columns else arcs(first, second, 0.25)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.15), (0.1, 0.1), (0.5, 0.5)])
def test_probabilities_beyond_all_and_nothing_are_refused(
    density: float, epsilon: float, models: dict[str, Path]
) -> None:
    listed = [{"model": str(models[name]), "parameters": {"weight": 0.5}} for name in ("a", "b")]
    given = {"merge_method": "della", "models": listed, "base_model": str(models["base"])}
    parameters = {"density": density, "epsilon": epsilon}
    with pytest.raises(kanna.InputError, match="give probabilities from") as error:
        kanna.merge_plan({**given, "parameters": parameters})
    assert "density + epsilon below 1" in str(error.value.remedy)
    for whole in (0, 1):
        kanna.merge_plan({**given, "parameters": {**parameters, "density": whole}})
