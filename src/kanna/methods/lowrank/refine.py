"""Optional optimiser steps on one block, to bring its output back to that of the original block.

The recipe of AA-SVD (arXiv 2604.02119, published code): AdamW, learning rate 1e-4, weight decay 0.01,
gradient norm 1, a tenth of the steps warm-up and a cosine to a tenth, mean squared error to the ORIGINAL
block's output, factors and norms trained. Memory is one block; the compressed stream is its input.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanna.calibration.calls import states_of
from kanna.calibration.passage import Passage
from kanna.forms import FormModule
from kanna.training.batches import order_of
from kanna.training.schedule import warm_cosine

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.01
LARGEST_NORM = 1.0
WARM_UP = 0.1
LAST_RATE = 0.1


@dataclass(frozen=True)
class RefineTask:
    """What a block is trained on.

    Args:
        path: Of the block.
        forms: Keyed by the replaced modules' full paths.
        inputs: Of the compressed model, before the block.
        targets: The original block's outputs (b, length, width), batch by batch.
        masks: (b, length) bool, batch by batch; None where nothing is padding.
    """

    path: str
    forms: Mapping[str, object]
    inputs: Passage
    targets: Sequence[Tensor]
    masks: Sequence[Tensor | None]


def refine_block(
    block: nn.Module,
    task: RefineTask,
    steps: int,
    seed: int,
    dtypes: Mapping[str, torch.dtype],
    stored: Callable[[str], torch.dtype],
) -> dict[str, Tensor]:
    """Train the factors and norms of `block` in place and return them as they will be stored.

    Args:
        seed: Of the order of batches.
        dtypes: Stored dtype of each factor.
        stored: Stored dtype of a module's parameters.

    Returns:
        Full parameter name -> tensor; the block holds the same rounded values.
    """
    trained = _trainable(block, task.path, task.forms)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    device = next(iter(trained.values())).device
    for step, index in enumerate(order_of(task.inputs.batches, steps, seed)):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * warm_cosine(step, steps, WARM_UP, LAST_RATE)
        output = states_of(task.inputs.call(index).run(block))
        _error(output, task.targets[index].to(device), task.masks[index]).backward()
        nn.utils.clip_grad_norm_(trained.values(), LARGEST_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return {
        name: _rounded(p, dtypes.get(name) or stored(name.rpartition(".")[0])) for name, p in trained.items()
    }


def _trainable(block: nn.Module, path: str, forms: Mapping[str, object]) -> dict[str, nn.Parameter]:
    """Floating parameters of the replaced modules, and those of the norms."""
    parameters: dict[str, nn.Parameter] = {}
    for name, module in block.named_modules():
        full = f"{path}.{name}"
        replaced = isinstance(module, FormModule) and full in forms
        if replaced or "norm" in type(module).__name__.lower():
            parameters |= {f"{full}.{local}": p for local, p in module.named_parameters()}
    return parameters


def _error(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    squares = (output - target.to(output)).square()
    return squares.mean() if mask is None else squares[mask.to(squares.device)].mean()


def _rounded(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
    """The value as stored; the parameter takes it over, so later blocks see what will be on disk."""
    stored = parameter.detach().to(dtype)
    with torch.no_grad():
        parameter.copy_(stored)
    parameter.requires_grad_(False)
    return stored.cpu()
