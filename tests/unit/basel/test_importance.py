"""What bases are worth, against derivatives that autograd takes of the loss itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import kanna
from kanna.methods.basel import importance
from kanna.methods.basel.bases import Bases, Decomposed, decomposed
from kanna.methods.basel.budget import Size, kept_by_worth
from kanna.methods.basel.config import MOST_EVENTS_OF_BSI, PROBES, BaselConfig
from kanna.methods.basel.events import Events, Schedule
from kanna.methods.basel.importance import Averages, curvatures
from kanna.methods.basel.plan import make_plan
from kanna.runs.source import Source
from kanna.runs.step import Inputs
from kanna.training.optimiser import Group, Optimiser


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Toy:
    """Two layers of bases, and a loss."""

    def __init__(self, roots: bool = False) -> None:
        self.layers = {
            name: Bases(
                decomposed(drawn(*shape, seed=seed), torch.float64), 0, torch.Generator(), roots
            ).double()
            for seed, (name, shape) in enumerate({"first": (4, 3), "second": (2, 4)}.items())
        }
        self.hidden, self.target = 0.5 * drawn(6, 3, seed=11), 0.5 * drawn(6, 2, seed=12)
        with torch.no_grad():
            for number, layer in enumerate(self.layers.values()):
                layer.weight.add_(0.1 * drawn(len(layer.weight), seed=7 + number))

    def loss(self, sigma: Tensor) -> Tensor:
        """Of all weights, one layer's after the other's, written out from the vectors."""
        out, start = self.hidden, 0
        for layer in self.layers.values():
            rows = layer.right / layer.right.norm(dim=1, keepdim=True)
            some = sigma[start : start + len(rows)]
            out, start = (out @ (layer.left * some @ rows).T).tanh(), start + len(rows)
        return (out - self.target).square().mean()

    def gradients(self) -> None:
        """Of the layers as they are."""
        out = self.hidden
        for layer in self.layers.values():
            layer.weight.grad = None
            out = layer(out).tanh()
        (out - self.target).square().mean().backward()

    @property
    def sigma(self) -> Tensor:
        return torch.cat([layer.sigma.detach() for layer in self.layers.values()])

    @property
    def curved(self) -> Tensor:
        """(k, k) sigma_i H_ij sigma_j."""
        hessian = torch.autograd.functional.hessian(self.loss, self.sigma)
        return self.sigma[:, None] * hessian * self.sigma


def joined(values: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(values.values()))


@pytest.mark.parametrize("roots", [False, True])
def test_a_probe_sees_the_hessian_in_its_direction(roots: bool) -> None:
    """For the signs that are drawn, mean z (H z) exactly, off-diagonal terms and all."""
    toy = Toy(roots)
    before = {name: layer.weight.detach().clone() for name, layer in toy.layers.items()}
    found = joined(curvatures(toy.layers, toy.gradients, torch.Generator().manual_seed(3)))
    again, expected = torch.Generator().manual_seed(3), torch.zeros(len(toy.sigma), dtype=torch.float64)
    for _ in range(PROBES):
        signs = torch.cat([importance._signs(layer.weight, again) for layer in toy.layers.values()])
        expected += signs * (toy.curved @ signs) / PROBES
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    for name, layer in toy.layers.items():
        assert torch.equal(layer.weight, before[name])


def test_the_mean_of_probes_is_the_diagonal_of_the_hessian() -> None:
    toy, draw = Toy(), torch.Generator().manual_seed(0)
    exact = toy.curved.diagonal()
    runs = torch.stack([joined(curvatures(toy.layers, toy.gradients, draw)) for _ in range(150)])
    error = runs.std(0) / len(runs) ** 0.5
    assert bool(((runs.mean(0) - exact).abs() <= 4 * error + 1e-3 * exact.abs()).all())
    assert bool((error <= 0.2 * exact.abs().max()).all())  # the test can tell


def test_worth_is_the_loss_that_is_expected_when_a_basis_goes() -> None:
    """-sigma g + sigma^2 h / 2, a curvature below 0 being none; worth below 0 goes first."""
    toy, averages = Toy(), Averages("bsi")
    toy.gradients()
    averages.add(toy.layers)
    (slope,) = torch.autograd.grad(toy.loss(sigma := toy.sigma.requires_grad_()), sigma)
    diagonal = toy.curved.diagonal()
    assert 0 < int((diagonal < 0).sum()) < len(diagonal)
    parts = diagonal.split([len(layer.weight) for layer in toy.layers.values()])
    found = joined(averages.scores(toy.layers, dict(zip(toy.layers, parts, strict=True))))
    curvature = torch.where(diagonal > 0, diagonal, 0.0)
    expected = -sigma.detach() * slope + curvature / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    sizes = {"a": Size(10, 10, 0), "b": Size(4, 4, 0)}
    worth = {"a": torch.tensor([-3.0, 1.0, 5.0]), "b": torch.tensor([-2.0, 0.1, 9.0])}
    kept = [
        kept_by_worth(worth, sizes, 84.0 - gone, 0.0, last=False)
        for gone in (8, 28, 36, 56)  # -2 / 8, -3 / 20, 0.1 / 8, 1 / 20 for each parameter
    ]
    assert [{name: places.tolist() for name, places in each.items()} for each in kept] == [
        {"a": [0, 1, 2], "b": [1, 2]},
        {"a": [1, 2], "b": [1, 2]},
        {"a": [1, 2], "b": [2]},
        {"a": [2], "b": [2]},
    ]


def events(toy: Toy, kind: str, **more: float) -> tuple[Events, Optimiser]:
    sizes = {name: Size(len(layer.left), layer.right.shape[1], 0) for name, layer in toy.layers.items()}
    schedule = Schedule(1, 3, 2, 39, 20)

    def again(name: str) -> Decomposed:
        raise AssertionError(name)

    made = Events(toy.layers, sizes, schedule, Averages(kind), again, **more)  # type: ignore[arg-type]
    made.begin(lambda _: toy.gradients())
    named = {f"{name}:weight": layer.weight for name, layer in toy.layers.items()}
    return made, Optimiser([Group(named, 0.1)])


def test_events_probe_one_batch_and_count_what_is_below_zero() -> None:
    toy = Toy()
    found, optimiser = events(toy, "bsi", seed=4)
    asked: list[int] = []
    found.begin(lambda step: (asked.append(step), toy.gradients()))
    curved = joined(curvatures(toy.layers, toy.gradients, torch.Generator().manual_seed(5)))
    found.gradients(0)
    found.after(0, optimiser)
    assert asked == [0] * 2 * PROBES
    assert found.curved == (len(curved), int((curved < 0).sum()))
    other, _ = events(Toy(), "bsi", seed=4)
    other.restore({**found.tensors(), **{f"kept:{name}": places for name, places in other.kept.items()}})
    assert other.curved == found.curved


@pytest.mark.parametrize("roots", [False, True])
def test_the_penalty_is_on_shares_and_not_in_the_worth(roots: bool) -> None:
    """Its slope in sigma_i is l1 / (matrices sum sigma0), whatever the scale of a matrix."""
    toy = Toy(roots)
    with torch.no_grad():
        toy.layers["first"].weight.sub_(0.05)
    plain, _ = events(toy, "taylor")
    toy.gradients()
    plain.gradients(0)
    before = {name: layer.weight.grad.clone() for name, layer in toy.layers.items()}
    found, _ = events(toy, "taylor", l1=0.7)
    first = {name: float(layer.sigma.sum().detach()) for name, layer in toy.layers.items()}
    found.gradients(0)
    for name, layer in toy.layers.items():
        for place in range(len(layer.weight)):
            moved = layer.weight.detach().double().clone()
            step = 1e-6
            moved[place] += step
            root = layer.offset + layer.unit * moved
            change = float((layer.right[place].norm() * root[place] ** 2 - layer.sigma[place]).detach())
            added = float(layer.weight.grad[place] - before[name][place])
            assert added == pytest.approx(0.7 / 2 * change / step / first[name], rel=1e-3)
        assert torch.equal(found.averages.sums[name], plain.averages.sums[name])


def test_a_penalty_makes_weights_smaller(bases: Callable[[str], Path], rows: Path, tmp_path: Path) -> None:
    """Without training of factors, these hold the weights: bases of one side have norm 1."""
    sums = []
    for l1 in (0.0, 20.0):
        config = BaselConfig(
            data=rows, keep=0.5, rows=8, epochs=(1, 1, 0), prune_events=2, extra_rank=0, l1=l1
        )
        result = kanna.basel(bases("llama"), tmp_path / str(l1), config)
        assert result.passed
        written = load_file(tmp_path / str(l1) / "model.safetensors")
        sums.append(sum(float(v.norm(dim=1).sum()) for n, v in written.items() if "reduce" in n))
    assert sums[1] < 0.99 * sums[0]
    with pytest.raises(ValueError, match="l1 is for weights of bases"):
        BaselConfig(data=rows, start=tmp_path, l1=0.1)


def test_bsi_has_fewer_events_and_says_what_they_cost(bases: Callable[[str], Path], rows: Path) -> None:
    source = Source.open(bases("llama"))

    def plan(kind: str, **more: int) -> object:
        given = {"data": rows, "keep": 0.5, "rows": 1, "epochs": (1, 8, 1), "importance": kind, **more}
        return make_plan(source, BaselConfig(**given), Inputs())

    fisher, bsi, few = plan("fisher"), plan("bsi"), plan("bsi", prune_events=3)
    steps = 10 * 36  # four of the rows are held out
    assert fisher.schedule.events == 9 * 36 // 8 and fisher.passes == steps
    assert (bsi.schedule.events, bsi.passes) == (MOST_EVENTS_OF_BSI, steps + 16 * MOST_EVENTS_OF_BSI)
    assert (few.schedule.events, few.passes) == (3, steps + 48)
    assert bsi.to_dict()["gradient_passes"] == bsi.passes
    assert "16 gradients more at each event" in bsi.lines()
    assert "16 gradients more at each event" not in fisher.lines()
