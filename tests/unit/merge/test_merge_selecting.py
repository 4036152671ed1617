"""Means of directions, SCE and RAM against their definitions in float64 on whole tensors."""

from pathlib import Path

import pytest
import torch
from merge_models import run
from test_merge_methods import COUNT, same_for_all_sizes, some
from torch import Tensor

import kanna
from kanna.methods.merge.rules.directions import Directions
from kanna.methods.merge.rules.reinforced import Ram
from kanna.methods.merge.rules.variance import Sce

_F32 = torch.float32


def units(models: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of length 1, and lengths."""
    stack = torch.stack([one.double() for one in models])
    lengths = stack.norm(dim=1)
    return stack / lengths[:, None], lengths


@pytest.mark.parametrize("near", [0.1, 3.0])
@pytest.mark.parametrize("with_base", [False, True])
def test_multislerp_goes_along_the_weighted_directions(near: float, with_base: bool) -> None:
    models = some(4, near=near)
    inside = models[1:] if with_base else models
    weights = [0.1, 0.5, 0.4] if with_base else [0.1, 0.3, 0.2, 0.4]
    indices = range(1, 4) if with_base else range(4)
    base = models[0] if with_base else torch.zeros(COUNT)
    rows, lengths = units([one - base for one in inside])
    weighted = torch.tensor(weights, dtype=torch.float64)
    along = weighted @ rows
    expected = base.double() + along / along.norm() * (weighted @ lengths)
    found = same_for_all_sizes(
        lambda: Directions("w", indices, 0 if with_base else -1, weights), [one.clone() for one in models]
    )
    assert float((found - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def test_karcher_is_where_the_angles_to_all_models_balance() -> None:
    """The sum of the logarithms is 0 there, and no point around it has a smaller sum of squared angles."""
    models = some(4, torch.float64, near=2.0)
    rows, lengths = units(models)
    found = run(Directions("w", range(4), -1, [0.25] * 4, 100, 1e-13), models, COUNT)
    assert float(found.norm()) == pytest.approx(float(lengths.mean()), rel=1e-12)
    point = found / found.norm()

    def logarithms(at: Tensor) -> Tensor:
        cosines = rows @ at
        return (torch.acos(cosines) / torch.sin(torch.acos(cosines)))[:, None] * (
            rows - cosines[:, None] * at
        )

    assert float(logarithms(point).sum(0).norm()) < 1e-9
    straight = rows.sum(0) / rows.sum(0).norm()
    assert float(logarithms(straight).sum(0).norm()) > 1e-3  # so that a plain mean would not pass
    spread = torch.acos(rows @ point).square().sum()
    for other in torch.randn(3, COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(1)):
        moved = point + 1e-3 * other / other.norm()
        assert torch.acos(rows @ (moved / moved.norm())).square().sum() > spread


def test_karcher_of_two_is_half_way_along_the_arc_and_of_equal_models_each_of_them() -> None:
    first, second = some(2, near=2.0)
    rows, lengths = units([first, second])
    middle = rows.sum(0) / rows.sum(0).norm() * lengths.mean()
    found = same_for_all_sizes(lambda: Directions("w", range(2), -1, [0.5, 0.5], 10, 1e-5), [first, second])
    assert float((found - middle).abs().max()) < 1e-6 * float(middle.abs().max())
    for steps in (0, 10):
        same = run(Directions("w", range(3), -1, [1 / 3] * 3, steps, 1e-9), [first] * 3, COUNT)
        assert torch.equal(same, first)


def test_directions_that_are_none_or_cancel() -> None:
    values = torch.tensor([3.0, 4.0])
    zero = torch.zeros(2)
    assert torch.equal(run(Directions("w", range(2), -1, [0.5, 0.5]), [zero, zero], 2), zero)
    # Nothing has no direction, but a length: half of 5 is left.
    assert torch.allclose(run(Directions("w", range(2), -1, [0.5, 0.5]), [values, zero], 2), values / 2)
    with pytest.raises(kanna.InputError, match=r"w: the weighted directions of the models cancel"):
        run(Directions("w", range(2), -1, [0.5, 0.5]), [values, -values], 2)


def sce(models: list[Tensor], share: float, scale: float) -> Tensor:
    """By sorting, entry by entry, in float64."""
    base, *others = (one.double() for one in models)
    changes = torch.stack([one - base for one in others])
    variance = (changes - changes.mean(0)).square().mean(0)
    if share < 1 and (variance > 0).any():
        count = max(1, int(share * int((variance > 0).sum())))
        order = torch.sort(variance, descending=True, stable=True).indices
        selected = torch.zeros(len(base), dtype=torch.bool)
        selected[order[:count]] = True
        changes = changes * selected
    weights = changes.square().sum(1)
    weights = weights / weights.sum()
    sign = torch.where(changes.sum(0) >= 0, 1, -1)
    agrees = changes * sign > 0
    total = (agrees * weights[:, None]).sum(0)
    change = (changes * agrees * weights[:, None]).sum(0) / torch.where(total > 0, total, 1)
    return base + scale * change


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0001])
@pytest.mark.parametrize("near", [0.5, 1e-5])
def test_sce(share: float, near: float) -> None:
    """Of differences of any size: there are no floors below which weights become equal."""
    zero = torch.zeros(COUNT)
    changes = [one * scale * near for one, scale in zip(some(4, near=1.0)[1:], (1, 3, 0.2), strict=True)]
    changes[1][:500] = changes[2][:500] = changes[0][:500]  # entries in which models agree
    models = [zero, *changes]
    found = same_for_all_sizes(lambda: Sce(0, 4, COUNT, share, 0.7, _F32), models)
    expected = sce(models, share, 0.7)
    # An entry next to the threshold may fall on its other side in float32; it is a part of all weights, too.
    apart = (found - expected).abs() > 1e-5 * float(expected.abs().max())
    assert int(apart.sum()) <= (2 if share < 1 else 0)
    operation = Sce(0, 4, COUNT, share, 0.7, _F32)
    run(operation, models, COUNT)
    assert operation.kept == (3 * (COUNT if share == 1 else max(1, int(share * (COUNT - 500)))), 3 * COUNT)


def test_sce_of_equal_models_is_each_of_them() -> None:
    base, model = some(2)
    for share in (1.0, 0.1):
        found = run(Sce(0, 3, COUNT, share, 1.0, _F32), [base, model, model], COUNT)
        assert torch.allclose(found, model, rtol=0, atol=1e-6)


def test_ram_keeps_what_one_model_changed_and_averages_what_several_did() -> None:
    base = torch.tensor([1.0, 1, 1, 1, 1])
    first = base + torch.tensor([0.5, 0.5, 0.25, 0, 1e-6])
    second = base + torch.tensor([0, -0.25, 0.25, 0, 0])
    found = run(Ram(0, 3, 1e-5), [base, first, second], 5)
    assert found.tolist() == [1.5, 1.125, 1.25, 1, 1]
    operation = Ram(0, 3, 1e-5)
    run(operation, [base, first, second], 2)
    assert operation.kept == (5, 10)


@pytest.mark.parametrize("most", [0.2, 10.0])
def test_ramplus_raises_what_a_model_has_to_itself(most: float) -> None:
    random = torch.Generator().manual_seed(5)
    base = torch.randn(COUNT, generator=random)
    changes = [
        torch.randn(COUNT, generator=random) * (torch.rand(COUNT, generator=random) < share)
        for share in (0.2, 0.5, 0.7)
    ]
    found = same_for_all_sizes(lambda: Ram(0, 4, 1e-5, 0.3, most), [base, *(base + one for one in changes)])
    deltas = torch.stack([(base + one).double() - base.double() for one in changes])
    changed = deltas.abs() > 1e-5
    counts = changed.sum(0)
    alone = changed & (counts == 1)
    ratio = (changed & (counts > 1)).sum(1) / alone.sum(1)
    raised = torch.where(alone, deltas * (1 + 0.3 * ratio.clamp(max=most))[:, None], deltas * changed)
    expected = base.double() + raised.sum(0) / counts.clamp(min=1)
    assert float((found - expected).abs().max()) < 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("multislerp", {"normalize_weights": False}),
        ("karcher", {"max_iter": 20, "tol": 1e-9}),
        ("sce", {"select_topk": 0.1}),
        ("ram", {"epsilon": 1e-6}),
        ("ramplus_tl", {"r": 0.2, "alpha": 0.5}),
    ],
)
def test_recipes_run(
    method: str, parameters: dict[str, float], models: dict[str, Path], tmp_path: Path
) -> None:
    listed = [{"model": str(models[name])} for name in ("a", "b")]
    if method == "multislerp":
        listed = [{**one, "parameters": {"weight": 0.5}} for one in listed]
    given = {"merge_method": method, "models": listed, "parameters": parameters}
    if method != "karcher":
        given["base_model"] = str(models["base"])
    assert kanna.merge(given, tmp_path / "out").passed


def test_weights_of_multislerp_that_cancel_are_refused(models: dict[str, Path]) -> None:
    listed = [
        {"model": str(models[name]), "parameters": {"weight": weight}}
        for name, weight in (("a", 1), ("b", -1))
    ]
    with pytest.raises(kanna.InputError, match="sum to 0") as error:
        kanna.merge_plan({"merge_method": "multislerp", "models": listed})
    assert "normalize_weights: false" in str(error.value.remedy)
