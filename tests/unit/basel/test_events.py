"""Bases that were dropped are gone for good: from the buffers, the parameters and what was averaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import kanna
import process_state
from kanna.methods.basel.bases import Bases, BasesLayer, Decomposed, decomposed
from kanna.methods.basel.budget import Size
from kanna.methods.basel.config import BaselConfig
from kanna.methods.basel.events import Events, Schedule
from kanna.methods.basel.execute import _put_bases, _Start
from kanna.methods.basel.importance import Averages
from kanna.methods.basel.plan import make_plan
from kanna.runs.source import Source
from kanna.runs.step import Inputs
from kanna.training.optimiser import BETAS, Group, Optimiser

EXTRA = 1


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(roots: bool) -> dict[str, Bases]:
    made = {}
    for seed, (name, shape) in enumerate({"first": (16, 12), "second": (10, 16)}.items()):
        start = decomposed(drawn(*shape, seed=seed), torch.float64)
        made[name] = Bases(start, EXTRA, torch.Generator().manual_seed(seed), roots).double()
    return made


def parameters(made: dict[str, Bases]) -> dict[str, nn.Parameter]:
    found = {f"{name}:weight": layer.weight for name, layer in made.items()}
    found |= {f"{name}:left": layer.new_left for name, layer in made.items()}
    return found | {f"{name}:right": layer.new_right for name, layer in made.items()}


def learn(made: dict[str, Bases], step: int) -> None:
    """Gradients of a step's own batch."""
    hidden, target = drawn(7, 12, seed=100 + step), drawn(7, 10, seed=200 + step)
    (made["second"](made["first"](hidden).tanh()) - target).square().mean().backward()


def events(made: dict[str, Bases], schedule: Schedule, kind: Any = "fisher") -> Events:
    sizes = {name: Size(len(layer.left), layer.right.shape[1], EXTRA) for name, layer in made.items()}

    def again(name: str) -> Decomposed:
        raise AssertionError(name)

    return Events(made, sizes, schedule, Averages(kind), again)


@pytest.mark.parametrize("roots", [False, True])
def test_behind_an_event_a_run_is_one_that_never_had_more_bases(roots: bool) -> None:
    """A fresh model of the bases that stayed, and PyTorch's own optimiser with the averages of these."""
    made = layers(roots)
    adam = Optimiser([Group(parameters(made), 0.05)])
    found = events(made, Schedule(3, 6, 1, 650, 200))
    assert found.schedule.event_after(2) == 1
    for step in range(3):
        learn(made, step)
        found.gradients(step)
        moments = {name: value.clone() for name, value in adam.tensors().items()}  # before the third step
        gradients = {name: p.grad.clone() for name, p in adam.parameters.items()}
        adam.step(1.0, None)
    learnt = {name: p.detach().clone() for name, p in adam.parameters.items()}
    found.after(2, adam)
    kept = found.kept
    assert all(1 <= len(kept[name]) < count for name, count in {"first": 12, "second": 10}.items())

    fresh, start = {}, layers(roots)
    for name, places in kept.items():
        left, right = start[name].left[:, places], start[name].right[places]
        fresh[name] = Bases(Decomposed(left, right), EXTRA, torch.Generator(), roots).double()
    plain = torch.optim.AdamW(parameters(fresh).values(), lr=0.05, betas=BETAS, weight_decay=0.0)
    for name, parameter in parameters(fresh).items():
        own = kept[name.split(":")[0]] if name.endswith("weight") else slice(None)
        parameter.data = learnt[name][own].clone()
        first, second = (moments[f"{name}:{kind}"] for kind in ("exp_avg", "exp_avg_sq"))
        plain.state[parameter] = {  # the third step's averages, written out
            "exp_avg": (BETAS[0] * first + (1 - BETAS[0]) * gradients[name])[own].clone(),
            "exp_avg_sq": (BETAS[1] * second + (1 - BETAS[1]) * gradients[name] ** 2)[own].clone(),
            "step": torch.tensor(3.0),
        }
    for step in range(3, 6):
        learn(made, step)
        adam.step(1.0, None)
        plain.zero_grad()
        learn(fresh, step)
        plain.step()
    for name, parameter in parameters(fresh).items():
        torch.testing.assert_close(adam.parameters[name], parameter, rtol=1e-9, atol=1e-12)
        for kind in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(adam.tensors()[f"{name}:{kind}"], plain.state[parameter][kind])


def slopes(made: dict[str, Bases], step: int) -> dict[str, list[float]]:
    """sigma_i dL/dsigma_i of a step's own batch, each matrix written out as the sum that it is."""
    hidden, target = drawn(7, 12, seed=100 + step), drawn(7, 10, seed=200 + step)
    sigmas = {name: layer.sigma.detach().requires_grad_() for name, layer in made.items()}
    weights = {}
    for name, layer in made.items():
        weights[name] = layer.new_left.detach() @ layer.new_right.detach()
        for u, row, sigma in zip(layer.left.T, layer.right, sigmas[name], strict=True):
            weights[name] = weights[name] + sigma * torch.outer(u, row / row.norm())
    out = (hidden @ weights["first"].T).tanh() @ weights["second"].T
    found = torch.autograd.grad((out - target).square().mean(), list(sigmas.values()))
    pairs = zip(sigmas.items(), found, strict=True)
    return {name: (sigma.detach() * slope).tolist() for (name, sigma), slope in pairs}


def left_over(worth: dict[str, dict[int, float]], last: bool, wanted: float) -> dict[str, list[int]]:
    """Places that stay when the least worth per parameter goes first, until the count is nearest."""
    of = {"first": (16, 12), "second": (10, 16)}
    best = {name: max(values, key=values.__getitem__) for name, values in worth.items()}
    order = sorted(
        (value / sum(of[name]), name, place)
        for name, values in worth.items()
        for place, value in values.items()
        if place != best[name]
    )
    states = []
    for gone in range(len(order) + 1):
        dropped = {(name, place) for _, name, place in order[:gone]}
        stays = {name: [place for place in worth[name] if (name, place) not in dropped] for name in worth}
        counts = {name: (len(stays[name]) + EXTRA) * sum(of[name]) for name in worth}
        if last:  # as it is stored: dense where that is smaller
            counts = {name: min(count, of[name][0] * of[name][1]) for name, count in counts.items()}
        states.append((abs(sum(counts.values()) - wanted), gone, stays))
    return min(states)[2]


@pytest.mark.parametrize("kind", ["fisher", "taylor"])
def test_events_drop_what_was_worth_least_since_the_last_one(kind: str) -> None:
    """Half the mean square of sigma g, or the size of its mean, over the steps between; by hand."""
    made, total, share = layers(roots=False), 650, 200
    adam = Optimiser([Group(parameters(made), 0.1)])
    found = events(made, Schedule(3, 9, 2, total, share), kind)
    seen: list[dict[str, list[float]]] = []
    places = {name: list(range(len(layer.left[0]))) for name, layer in made.items()}
    for step in range(6):
        learn(made, step)
        seen.append(slopes(made, step))
        found.gradients(step)
        adam.step(1.0, None)
        found.after(step, adam)
        if step in (2, 5):
            series = {name: list(zip(*(one[name] for one in seen[-3:]), strict=True)) for name in made}
            worth = {
                name: {
                    place: sum(t * t for t in ts) / 6 if kind == "fisher" else abs(sum(ts) / 3)
                    for place, ts in zip(places[name], series[name], strict=True)
                }
                for name in made
            }
            wanted = (total * share) ** 0.5 if step == 2 else float(share)
            places = left_over(worth, step == 5, wanted)
            assert {name: kept.tolist() for name, kept in found.kept.items()} == places
    assert 4 <= sum(map(len, places.values())) < 8


@pytest.mark.parametrize("kind", ["fisher", "taylor", "sigma", "bsi", "keep_sigma"])
def test_what_was_dropped_never_returns(kind: str) -> None:
    made = layers(roots=False)
    whole = {name: (layer.left.clone(), layer.right.clone()) for name, layer in made.items()}
    adam = Optimiser([Group(parameters(made), 0.3)])
    share = 0.3 if kind == "keep_sigma" else None
    found = events(made, Schedule(2, 14, 6, 650, 180, share), "sigma" if share else kind)
    found.begin(lambda step: learn(made, step))
    before, counts = {name: set(places.tolist()) for name, places in found.kept.items()}, []
    for step in range(14):
        learn(made, step)
        found.gradients(step)
        adam.step(1.0, None)
        found.after(step, adam)
        for name, layer in made.items():
            places = found.kept[name]
            assert set(places.tolist()) <= before[name] and len(places) >= 1
            before[name] = set(places.tolist())
            left, right = whole[name]
            assert torch.equal(layer.left, left[:, places]) and torch.equal(layer.right, right[places])
            assert layer.weight.shape == places.shape
            assert layer.new_left.shape[1] == layer.new_right.shape[0] == EXTRA
        counts.append(sum(map(len, before.values())))
    assert len(found.history) == 6 and counts[-1] < counts[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_of_bases_train_under_transformers(
    family: str, bases: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    """Its Trainer steps, saves and loads them like any module; only what is to be trained changes."""
    source = Source.open(bases(family))
    plan = make_plan(source, BaselConfig(data=rows, keep=0.5, select="mlp;q@1", extra_rank=2), Inputs())

    def model() -> nn.Module:
        loaded, _ = kanna.load(bases(family), dtype="float32")
        loaded.requires_grad_(False)
        _put_bases(loaded, _Start(source, plan, {}), plan)
        return loaded

    trained = model()
    start = {name: value.clone() for name, value in trained.state_dict().items()}
    wanted = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    assert len(wanted) == 3 * len(plan.selected)
    ids = torch.arange(3, 15)
    arguments = transformers.TrainingArguments(
        tmp_path / "run", max_steps=3, report_to=[], use_cpu=True, save_strategy="no", learning_rate=0.1
    )
    with process_state.given_back():  # Trainer seeds everything
        trainer = transformers.Trainer(
            trained, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8
        )
        trainer.train()
    after = trained.state_dict()
    assert {name for name, value in after.items() if not torch.equal(value, start[name])} == wanted
    trainer.save_model(str(tmp_path / "saved"))
    again = model()
    missing, unexpected = again.load_state_dict(
        load_file(tmp_path / "saved" / "model.safetensors"), strict=False
    )
    assert not unexpected and not set(missing) & wanted
    assert any(isinstance(module, BasesLayer) for module in again.modules())
    with torch.no_grad():
        assert torch.equal(again.eval()(ids[None]).logits, trained.eval()(ids[None]).logits)
