"""Gradients at the outputs of matrices by a backward pass through the whole model in memory.

For models that cannot be run block by block: blocks that are run again or share states (ALBERT, Zamba2), or
whose files are laid out differently from their modules.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

from kanna.calibration.calls import body_call
from kanna.calibration.windows import Windows
from kanna.checkpoint.reader import Checkpoint
from kanna.methods.lowrank.gradients import Sums, watched
from kanna.methods.lowrank.loss import embedded, hidden_tokens, kind_of, loss_of

# Float32 numbers of each token and block that a backward pass keeps, over the width.
_ACTIVATION_FACTOR = 40


def backward_memory(checkpoint: Checkpoint, windows: Windows, batch: int) -> int:
    """Bytes of the whole model in float32 and of the activations of one batch.

    Attention weights are not counted: fused attention keeps none. Models without it (GPT-J) need more.
    """
    weights = 4 * sum(
        tensor.bytes // checkpoint.dtype(name).itemsize for name, tensor in checkpoint.tensors.items()
    )
    tokens = windows.at_once(batch) * windows.ids.shape[1]
    config = checkpoint.config
    width = int(config.get("hidden_size") or config.get("n_embd") or 0)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    vocabulary = int(config.get("vocab_size") or 0)
    activations = 4 * tokens * (_ACTIVATION_FACTOR * width * layers + 3 * vocabulary)
    return weights + activations


def fits_in_memory(needed: int) -> bool:
    """Whether so many bytes are free now."""
    return needed < psutil.virtual_memory().available


def output_gradients(
    model: nn.Module,
    modules: Sequence[str],
    batches: Sequence[tuple[Tensor, Tensor | None]],
    seed: int,
    fisher: bool,
) -> Iterator[tuple[int, Sums]]:
    """Gather gradients at the outputs of `modules`, batch by batch.

    Args:
        batches: (ids, mask), both (b, length); no mask where nothing is padding.
        fisher: Also gather the row sums of squared weight gradients, which take further products.

    Yields:
        (batches done, the sums so far); the last one is the result.
    """
    sums: Sums = {}
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    watch = [(path, model.get_submodule(path)) for path in modules]
    for done, (ids, mask) in enumerate(batches, 1):
        with without_own_gradients(model), watched(watch, mask, sums, fisher):
            placed = None if mask is None else mask.to(device)
            _loss(model, ids.to(device), placed, generator).backward()
        yield done, sums


@contextmanager
def without_own_gradients(model: nn.Module) -> Iterator[None]:
    """Nobody asks for the gradients of parameters, which would take the memory of the model again."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _loss(model: nn.Module, ids: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    kind = kind_of(model)
    hidden = hidden_tokens(kind, ids, mask, generator)
    with embedded(model, hidden):
        logits = body_call(model, ids, mask).logits
    return loss_of(kind, logits, ids, mask, hidden, generator)
