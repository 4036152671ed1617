"""Methods against their definitions in float64 on whole tensors; chunks of any size give equal bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from merge_models import run, save_model, weights
from torch import Tensor

import kanna
from kanna.methods.merge.rules.differences import Pruned
from kanna.methods.merge.rules.nearness import NearSwap
from kanna.methods.merge.rules.operation import Operation
from kanna.methods.merge.rules.passing import Passthrough
from kanna.methods.merge.rules.pruning import Pruner, dropped, trimmed, uniform
from kanna.methods.merge.rules.spherical import NUSLERP_PARALLEL, SLERP_PARALLEL, Spherical
from kanna.methods.merge.rules.stock import ModelStock
from kanna.methods.merge.rules.sums import BLOCK

COUNT = 2 * BLOCK + 331
SIZES = (BLOCK, 2 * BLOCK, COUNT)


def some(number: int, dtype: torch.dtype = torch.float32, near: float = 0.05) -> list[Tensor]:
    """Models that differ little from the first."""
    random = torch.Generator().manual_seed(11)
    base = torch.randn(COUNT, generator=random).to(dtype)
    changes = (near * torch.randn(COUNT, generator=random).to(dtype) for _ in range(number - 1))
    return [base, *(base + change for change in changes)]


def same_for_all_sizes(make: Callable[[], Operation], models: list[Tensor]) -> Tensor:
    first, *others = (run(make(), models, size) for size in SIZES)
    assert all(torch.equal(first, other) for other in others)
    return first


def by_arc(x: Tensor, y: Tensor, t: float) -> Tensor:
    x, y = x.double(), y.double()
    angle = torch.acos((x / x.norm()) @ (y / y.norm()))
    return (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("near", [0.02, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp(t: float, near: float, dtype: torch.dtype) -> None:
    """Near models are mixed in a straight line, others along the arc, in the order base, other."""
    x, y = some(2, dtype, near)
    wide = x.double(), y.double()
    parallel = float(torch.cosine_similarity(*wide, dim=0)) > 0.9995
    assert parallel == (near == 0.02)
    expected = (1 - t) * wide[0] + t * wide[1] if parallel else by_arc(x, y, t)
    found = same_for_all_sizes(lambda: Spherical(1, 0, -1, t, SLERP_PARALLEL), [y, x])
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    if t in (0, 1):
        assert torch.equal(found, y if t else x)


def test_slerp_of_what_is_parallel_or_nothing() -> None:
    x, _ = some(2)
    assert torch.equal(same_for_all_sizes(lambda: Spherical(0, 1, -1, 0.3, SLERP_PARALLEL), [x, x]), x)
    zero = torch.zeros_like(x)
    found = same_for_all_sizes(lambda: Spherical(0, 1, -1, 0.5, SLERP_PARALLEL), [zero, x])
    assert torch.allclose(found, x * 0.5**0.5)
    found = same_for_all_sizes(lambda: Spherical(0, 1, -1, 0.25, SLERP_PARALLEL), [x, -x])
    assert torch.allclose(found, x * 0.5, atol=1e-6)


def test_nuslerp_of_differences_and_of_models() -> None:
    base, x, y = some(3, near=0.5)
    expected = base.double() + by_arc(x - base, y - base, 0.3)
    found = same_for_all_sizes(lambda: Spherical(1, 2, 0, 0.3, NUSLERP_PARALLEL), [base, x, y])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    found = same_for_all_sizes(lambda: Spherical(0, 1, -1, 0.3, NUSLERP_PARALLEL), [x, y])
    assert (found - by_arc(x, y, 0.3)).abs().max() <= 1e-5 * expected.abs().max()


def test_passthrough() -> None:
    (x,) = some(1)
    assert torch.equal(run(Passthrough(1.0), [x], BLOCK), x)
    assert torch.equal(run(Passthrough(0.25), [x], BLOCK), x / 4)


def test_model_stock() -> None:
    base, *others = some(4)
    # Differences with something in common, so that t is neither 0 nor 1.
    others = [base + 0.5 * (other - base) + 0.04 * torch.sin(torch.arange(COUNT)) for other in others]
    wide = [other.double() - base.double() for other in others]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosine = sum(float(torch.cosine_similarity(wide[i], wide[j], dim=0)) for i, j in pairs) / 3
    t = 3 * cosine / (1 + 2 * cosine)
    assert 0.2 < t < 0.95
    expected = t * sum(other.double() for other in others) / 3 + (1 - t) * base.double()
    found = same_for_all_sizes(lambda: ModelStock(1, 4), [others[0], base, *others[1:]])
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    equal = run(ModelStock(0, 3), [base, others[0], others[0]], BLOCK)
    assert (equal - others[0]).abs().max() <= 1e-6  # t = 1, whatever the size of the difference
    assert torch.equal(run(ModelStock(0, 3), [base, base, base], BLOCK), base)
    opposite = run(ModelStock(0, 3), [base, base + 1, base - 1], BLOCK)
    assert torch.equal(opposite, base)


def test_nearswap() -> None:
    base, other = some(2)
    difference = (other - base).double()
    share = (0.03 / difference.abs()).clamp(max=1).nan_to_num(nan=1)
    expected = (1 - share) * base.double() + share * other.double()
    found = same_for_all_sizes(lambda: NearSwap(1, 0.03), [other, base])
    assert (found - expected).abs().max() <= 1e-6
    assert 0.3 < float((found == other).float().mean()) < 0.6
    assert torch.equal(run(NearSwap(0, 0.0), [base, other], BLOCK), base)


@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize(("density", "gamma"), [(0.3, 0.1), (0.9, 0.01), (0.95, 0.2), (1.0, 0.5), (0.0, 0.1)])
def test_breadcrumbs(density: float, gamma: float, elect: bool) -> None:
    """By sorting: the very largest go, then as many as the density says stay."""
    base, *others = some(3)
    kept = []
    for other in others:
        difference = (other - base).numpy()
        order = np.lexsort((np.arange(COUNT), -np.abs(difference)))
        target = int(density * COUNT)
        top = min(int(gamma * COUNT), COUNT - target)
        mask = np.zeros(COUNT)
        mask[order[top : top + target]] = 1
        kept.append(difference.astype(float) * mask)
    total = 0.5 * kept[0] + 0.8 * kept[1]
    if elect:
        sign = np.where(total >= 0, 1, -1)
        total = sum(w * d * (np.sign(d) == sign) for w, d in zip((0.5, 0.8), kept, strict=True))
    expected = torch.from_numpy(base.double().numpy() + 0.7 * total)

    def make() -> Pruned:
        pruners = [trimmed(density, gamma, COUNT, torch.float32) for _ in range(3)]
        return Pruned("w", 0, [0, 0.5, 0.8], pruners, COUNT, elect, False, 0.7)

    found = same_for_all_sizes(make, [base, *others])
    assert (found - expected).abs().max() <= 2e-6
    assert make().kept == (0 if density == 0 else 2 * int(density * COUNT), 2 * COUNT)


def drop(density: float, seed: int, rescale: bool = True) -> Pruner | None:
    return dropped(density, COUNT, rescale, f"{seed}\n1\nw")


def test_dare_drops_by_chance_and_scales_what_stays() -> None:
    base, other = some(2)

    def make(seed: int, rescale: bool = True, density: float = 0.4) -> Pruned:
        pruners = [None, drop(density, seed, rescale)]
        return Pruned("w", 0, [0, 1.0], pruners, COUNT, False, False, 1.0)

    found = same_for_all_sizes(lambda: make(3), [base, other])
    moved = found != base
    assert abs(float(moved.float().mean()) - 0.4) < 0.015
    assert torch.allclose((found - base)[moved], (other - base)[moved] / 0.4, atol=1e-6)
    plain = run(make(3, rescale=False), [base, other], BLOCK)
    assert torch.allclose(plain[moved], other[moved], atol=1e-6) and torch.equal(plain[~moved], base[~moved])
    assert not torch.equal(found, run(make(4), [base, other], BLOCK))
    assert torch.equal(run(make(3, density=0.0), [base, other], BLOCK), base)
    assert (run(make(3, density=1.0), [base, other], BLOCK) - other).abs().max() <= 1e-6


def test_random_numbers_are_those_of_their_index() -> None:
    whole = uniform(77, 0, 1000)
    for first, count in ((0, 10), (1, 3), (5, 100), (333, 667), (998, 2)):
        assert np.array_equal(uniform(77, first, count), whole[first : first + count])
    assert whole.min() >= 0 and whole.max() < 1 and abs(whole.mean() - 0.5) < 0.03
    assert len(np.unique(whole)) == 1000 and not np.array_equal(whole, uniform(78, 0, 1000))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("merged")
    base = save_model(room / "base", 1, torch.float32)
    return {
        "base": base,
        "a": save_model(room / "a", 2, torch.float32, base),
        "b": save_model(room / "b", 3, torch.float32, base),
    }


def recipe(method: str, models: dict[str, Path], names: str, **more: object) -> dict[str, object]:
    listed = [{"model": str(models[name]), "parameters": {"weight": 0.5, "density": 0.5}} for name in names]
    if method in ("slerp", "model_stock", "nearswap"):
        listed = [{"model": one["model"]} for one in listed]
    return {"merge_method": method, "models": listed, **more}


def test_recipes_of_models(models: dict[str, Path], tmp_path: Path) -> None:
    """What a recipe gives goes to the rule: base, t by tensor, seed; other seeds, other bytes."""
    base, a, b = (weights(models[name]) for name in ("base", "a", "b"))
    t = [{"filter": "mlp", "value": 1}, {"value": 0}]
    given = recipe("slerp", models, "ab", base_model=str(models["b"]), parameters={"t": t})
    assert kanna.merge(given, tmp_path / "slerp").passed
    found = weights(tmp_path / "slerp")
    assert all(torch.equal(found[name], (a if "mlp" in name else b)[name]) for name in found)

    given = recipe("dare_ties", models, "ab", base_model=str(models["base"]))
    outs = [(tmp_path / f"dare-{n}", seed) for n, seed in enumerate((0, 0, 5))]
    for out, seed in outs:
        assert kanna.merge(given, out, seed=seed).passed
    first, again, other = (weights(out) for out, _ in outs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert sum(not torch.equal(first[name], other[name]) for name in first) > len(first) // 2
    assert '"seed": 5' in (outs[2][0] / "merge.json").read_text()

    given = recipe("nearswap", models, "a", base_model=str(models["base"]), parameters={"t": 0.002})
    kanna.merge(given, tmp_path / "near")
    name = "model.layers.0.mlp.up_proj.weight"
    near = weights(tmp_path / "near")[name]
    assert float((near - base[name]).abs().max()) == pytest.approx(0.002, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "names", "more", "said"),
    [
        ("slerp", "ab", {"parameters": {"t": 0.5}}, "goes from a base model"),
        ("slerp", "a", {"base_model": "a", "parameters": {"t": 0.5}}, "takes 2 models, the base among them"),
        ("slerp", "ab", {"base_model": "base", "parameters": {"t": 0.5}}, "and 3 are given"),
        ("slerp", "ab", {"base_model": "a"}, "t has no value"),
        ("model_stock", "a", {"base_model": "base"}, "at least 2 models beside the base, and 1 "),
        ("nearswap", "ab", {"base_model": "base", "parameters": {"t": 1}}, "takes 1 model beside the base"),
        ("nuslerp", "a", {}, "takes 2 models, and 1 are given"),
    ],
)
def test_recipes_with_other_numbers_of_models(
    method: str, names: str, more: dict[str, str], said: str, models: dict[str, Path]
) -> None:
    if "base_model" in more:
        more = {**more, "base_model": str(models[more["base_model"]])}
    with pytest.raises(kanna.InputError, match=said):
        kanna.merge_plan(recipe(method, models, names, **more))


def test_weights_of_nuslerp_that_cancel_are_refused(models: dict[str, Path]) -> None:
    """The remedy is one that there is: it has no `normalize`."""
    given = recipe("nuslerp", models, "ab")
    for entry, weight in zip(given["models"], (0.5, -0.5), strict=True):  # type: ignore[call-overload]
        entry["parameters"] = {"weight": weight}
    with pytest.raises(kanna.InputError, match="sum to 0") as error:
        kanna.merge_plan(given)
    assert error.value.remedy == "give others"
