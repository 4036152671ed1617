"""What scale tuning is measured beside, with the same trainer and batches: LoRA, zero-points, all weights.

Each takes a model of whole numbers (`kanna quantize`), learns, and is written as an ordinary dense model.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import kanna
from kanna.checkpoint.applied import int_modules
from kanna.forms.base import install
from kanna.forms.integer import IntLinear
from kanna.quant.grid import Grid, between, rounded
from kanna.runs.lessons import read_data
from kanna.runs.source import Source
from kanna.training.batches import mixed
from kanna.training.loop import Course, Material, train
from kanna.training.optimiser import Group, Optimiser
from kanna.training.schedule import eighth

ALPHA = 2  # of LoRA, times its rank
_SIDE_FILES = ("tokenizer*", "special_tokens_map.json", "generation_config.json", "vocab*", "merges*")


class Learnt(nn.Module):
    """A matrix that is made anew in every pass, of what is learnt."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.dense(), self.bias)

    def dense(self) -> Tensor:
        raise NotImplementedError


class Zeros(Learnt):
    """w = s (q - z - e): only zero-points move, and are no whole numbers any more."""

    def __init__(self, module: IntLinear) -> None:
        super().__init__()
        stored = dict(module.named_buffers(recurse=False))
        codes = module.form.codes(stored, module.in_features)
        self.grid, self.columns, self.bias = module.form.grid, module.in_features, module.bias
        self.register_buffer("steps", codes.steps)
        self.register_buffer("scale", codes.scale)
        self.moved = nn.Parameter(torch.zeros_like(codes.scale))

    def dense(self) -> Tensor:
        moved = self.grid.spread(self.moved, self.columns)
        return (self.steps - moved) * self.grid.spread(self.scale, self.columns)


class Anew(Learnt):
    """All weights, rounded in every pass to the grid that just holds them; gradients go straight through."""

    def __init__(self, weight: Tensor, bias: Tensor | None, grid: Grid) -> None:
        super().__init__()
        self.grid, self.bias = grid, bias
        self.weight = nn.Parameter(weight.clone())

    def dense(self) -> Tensor:
        return self.weight + (self._rounded() - self.weight).detach()

    @torch.no_grad()
    def _rounded(self) -> Tensor:
        some = self.grid.grouped(self.weight)
        scale, zero = between(some.amin(-1).clamp(max=0), some.amax(-1).clamp(min=0), self.grid)
        return rounded(self.weight, scale, zero, self.grid).weight


@dataclass(frozen=True)
class Dense:
    """A model that was learnt and written.

    Args:
        directory: Of the dense model.
        numbers: How many were learnt.
        loss: The least on rows that were not learnt.
    """

    directory: Path
    numbers: int
    loss: float


def learn(how: str, base: Path, original: Path, config: kanna.TuneConfig, rank: int, out: Path) -> Dense:
    """Learn what `kanna tune` with this configuration would, in another way.

    Args:
        how: lora, zeros or weights.
        base: A model of whole numbers.
        original: The model that it was made of.
        rank: Of LoRA.
        out: A new directory, of the dense model.
    """
    model, _ = kanna.load(base, dtype="float32", scales="base")
    model.requires_grad_(False)
    inside = int_modules(model)
    if how == "lora":
        learnt: Mapping[str, nn.Parameter] = _with_lora(model, inside, rank)
    else:
        given = None if how == "zeros" else _weights(original, inside)
        for path, module in inside.items():
            install(model, path, _other(module, None if given is None else given[path]))
        learnt = learnt_of(model)
    loss = train_learnt(model, learnt, base, config, out.with_name(f"{out.name}-training"))
    write_dense(original, {path: _dense(model.get_submodule(path)) for path in inside}, out)
    return Dense(out, sum(p.numel() for p in learnt.values()), loss)


def learnt_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the layers put in learn: all of their parameters but the bias."""
    made = {path: module for path, module in model.named_modules() if isinstance(module, Learnt)}
    return {
        f"{path}.{name}": parameter
        for path, module in made.items()
        for name, parameter in module.named_parameters()
        if name != "bias"
    }


def _other(module: IntLinear, weight: Tensor | None) -> Learnt:
    return Zeros(module) if weight is None else Anew(weight, module.bias, module.form.grid)


def _weights(original: Path, inside: Mapping[str, IntLinear]) -> dict[str, Tensor]:
    model, _ = kanna.load(original, dtype="float32")
    return {path: model.get_submodule(path).weight.detach() for path in inside}


def multiplied_out(module: IntLinear) -> nn.Linear:
    """An ordinary layer that computes the same."""
    plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    stored = dict(module.named_buffers(recurse=False))
    with torch.no_grad():
        plain.weight.copy_(module.form.codes(stored, module.in_features).weight)
        if module.bias is not None:
            plain.bias.copy_(module.bias)
    return plain.requires_grad_(False)


def _with_lora(model: nn.Module, inside: Mapping[str, IntLinear], rank: int) -> dict[str, nn.Parameter]:
    """Adapters of PEFT beside every matrix, multiplied out: PEFT knows no layer of whole numbers."""
    from peft import LoraConfig, inject_adapter_in_model

    for path, module in inside.items():
        install(model, path, multiplied_out(module))
    torch.manual_seed(0)
    given = LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=list(inside), lora_dropout=0.0)
    inject_adapter_in_model(given, model)
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def train_learnt(
    model: nn.Module,
    learnt: Mapping[str, nn.Parameter],
    base: Path,
    config: kanna.TuneConfig | kanna.BaselConfig,
    place: Path,
) -> float:
    """As `kanna tune` does: rows, batches, course and validations are its own."""
    data = read_data(Source.open(base), config, ())
    sizes = [len(one) for one in data.train.all], [len(one) for one in data.replay]
    batches = mixed(*sizes, config.rows, config.replay_share, config.seed)
    material = Material(data.train.all, batches, data.replay, data.validation.all)
    assert config.steps is not None
    course = Course(config.steps, validate_every=eighth(config.steps), best_from=0, seed=config.seed)
    place.mkdir(parents=True)
    found = train(model, Optimiser([Group(learnt, config.rate)]), material, course, place)
    return min(loss for _, loss in found.validation)


@torch.no_grad()
def _dense(module: Any) -> Tensor:
    """The weight that a layer computes with, now that it has learnt."""
    if isinstance(module, Learnt):
        return module.dense()
    return module.base_layer.weight + module.get_delta_weight("default")


@torch.no_grad()
def write_dense(original: Path, weights: Mapping[str, Tensor], out: Path) -> None:
    """The original with these weights, in float32."""
    model, _ = kanna.load(original, dtype="float32")
    for path, weight in weights.items():
        model.get_submodule(path).weight.copy_(weight)
    model.save_pretrained(out)
    for pattern in _SIDE_FILES:
        for file in original.glob(pattern):
            shutil.copy(file, out)
