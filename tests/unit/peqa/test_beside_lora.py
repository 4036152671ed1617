"""Against a low-rank adapter on the same codes, written out here: what scales learn of what it learns."""

from collections.abc import Callable
from pathlib import Path

import torch
from letter_rows import lines, rows_of
from torch import Tensor, nn

import kanna
from kanna.checkpoint.applied import int_modules
from kanna.runs.lessons import read_data
from kanna.runs.source import Source
from kanna.training.batches import mixed
from kanna.training.loop import Course, Material, train
from kanna.training.optimiser import Group, Optimiser

STEPS, ROWS = 60, 16


def adapted(base: Path, config: kanna.TuneConfig, place: Path) -> float:
    """Loss on held-out rows of adapters of rank 4 on every matrix of whole numbers."""
    data = read_data(Source.open(base), config, ())
    model, _ = kanna.load(base)
    model.requires_grad_(False)
    parameters: dict[str, nn.Parameter] = {}
    draw = torch.Generator().manual_seed(0)
    for path, module in int_modules(model).items():
        down = nn.Parameter(torch.randn(4, module.in_features, generator=draw) / module.in_features**0.5)
        up = nn.Parameter(torch.zeros(module.out_features, 4))
        module.register_parameter("down", down)
        module.register_parameter("up", up)
        parameters |= {f"{path}.down": down, f"{path}.up": up}

        def beside(one: nn.Module, given: tuple[Tensor], y: Tensor) -> Tensor:
            return y + 2 * (given[0] @ one.down.T) @ one.up.T  # type: ignore[union-attr,operator]

        module.register_forward_hook(beside)  # type: ignore[arg-type]
    batches = mixed([len(example) for example in data.train.all], [], ROWS, 0.25, 0)
    material = Material(data.train.all, batches, (), data.validation.all)
    optimiser = Optimiser([Group(parameters, 5e-3)])
    found = train(model, optimiser, material, Course(STEPS, validate_every=STEPS // 8), place)
    return min(loss for _, loss in found.validation)


def test_half_of_what_an_adapter_gains(quantised: Callable[[str], Path], tmp_path: Path) -> None:
    """Of log-likelihood on rows that were not learnt, with a number for each row of a matrix."""
    data = lines(tmp_path / "many.jsonl", rows_of(7, 3, 400))
    config = kanna.TuneConfig(data=data, name="law", steps=STEPS, rows=ROWS)
    found = kanna.tune(quantised("llama"), config, out=tmp_path / "out").figures
    gain = found["held_out_loss_before"] - found["held_out_loss_after"]
    beside = found["held_out_loss_before"] - adapted(quantised("llama"), config, tmp_path / "adapter")
    assert beside > 0.2
    assert gain >= 0.5 * beside
