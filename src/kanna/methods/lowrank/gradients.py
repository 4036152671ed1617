"""How much the loss feels a change of each matrix's outputs: one backward pass over the calibration text.

A change d of the output y of a matrix changes the loss by about g . d with g = dL/dy. Over tokens, that
is d^T H d with H = mean g g^T (m, m): the row metric of `linalg.basis`, and its mean diagonal the weight of
the matrix in rank allocation (one number a matrix: mean ||dL/dy||^2 / m).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from kanna.calibration.calls import body_call
from kanna.calibration.windows import Windows
from kanna.checkpoint.reader import Checkpoint
from kanna.models.matrix import Matrix
from kanna.models.views import read_bias

# A full metric of more outputs costs more memory than the weight itself; beyond it only the diagonal is kept.
LARGEST_FULL_METRIC = 4096
# The backward pass keeps the activations of all blocks, unlike the other passes: its memory grows with this.
_TOKENS_AT_ONCE = 2048
_ACTIVATION_FACTOR = 40
_MASKED_SHARE = 0.15


@dataclass
class OutputGradients:
    """Sums over calibration tokens for the module of fused or single matrices.

    Attributes:
        second: (m, m), or (m,) where m is large: sum of g g^T, float64.
        fisher: (m,) row sums of the squared weight gradient, summed over windows (FWSVD); float64.
        count: tokens.
    """

    second: Tensor
    fisher: Tensor
    count: int = 0


def gradient_batch(windows: Windows, batch: int) -> int:
    """Windows in one backward pass: at most `batch`, and no more than fit a fixed number of tokens."""
    return max(1, min(batch, _TOKENS_AT_ONCE // windows.ids.shape[1]))


def backward_memory(checkpoint: Checkpoint, windows: Windows, batch: int) -> int:
    """Bytes of the whole model in float32 and of the activations of one batch.

    Attention weights are not counted: fused attention keeps none. Models without it (GPT-J) need more.
    """
    weights = 4 * sum(
        tensor.bytes // checkpoint.dtype(name).itemsize for name, tensor in checkpoint.tensors.items()
    )
    tokens = gradient_batch(windows, batch) * windows.ids.shape[1]
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
) -> Iterator[tuple[int, dict[str, OutputGradients]]]:
    """Gather gradients at the outputs of `modules`, batch by batch.

    The loss is summed over tokens: next-token cross-entropy for causal models, masked tokens for masked
    ones, and a label drawn from the model's own prediction for classification heads (the true Fisher).

    Args:
        batches: (ids, mask), both (b, length); no mask where nothing is padding.
        fisher: Also gather the row sums of squared weight gradients, which take further products.

    Yields:
        (batches done, the sums so far); the last one is the result.
    """
    sums: dict[str, OutputGradients] = {}
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    for done, (ids, mask) in enumerate(batches, 1):
        with _without_own_gradients(model), _observed(model, modules, mask, sums, fisher):
            _loss(model, ids.to(device), None if mask is None else mask.to(device), generator).backward()
        yield done, sums


@contextmanager
def _without_own_gradients(model: nn.Module) -> Iterator[None]:
    """Nobody asks for the gradients of parameters, which would take the memory of the model again."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _observed(
    model: nn.Module,
    modules: Iterable[str],
    mask: Tensor | None,
    sums: dict[str, OutputGradients],
    fisher: bool,
) -> Iterator[None]:
    with ExitStack() as hooks:
        for path in modules:

            def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
                inputs = args[0].detach() if fisher else None
                if output.requires_grad:
                    output.register_hook(lambda gradient: _add(sums, path, inputs, gradient, mask))

            hooks.enter_context(model.get_submodule(path).register_forward_hook(forward))
        yield


def _add(
    sums: dict[str, OutputGradients], path: str, inputs: Tensor | None, gradient: Tensor, mask: Tensor | None
) -> None:
    rows = gradient.detach().reshape(-1, gradient.shape[-1])
    kept = rows if mask is None else rows[mask.reshape(-1).to(rows.device)]
    width = rows.shape[-1]
    full = width <= LARGEST_FULL_METRIC
    second = (kept.T @ kept).double() if full else kept.square().sum(0, dtype=torch.float64)
    total = sums.get(path)
    if total is None:
        total = sums[path] = OutputGradients(torch.zeros_like(second), second.new_zeros(width))
    total.second += second
    if inputs is not None:
        total.fisher += _fisher_rows(gradient.detach(), inputs)
    total.count += len(kept)


def _fisher_rows(gradient: Tensor, inputs: Tensor) -> Tensor:
    """(m,) sum over windows and columns of (dL/dW)^2, from g (b, t, m) and x (b, t, n).

    ||G^T X||^2 row by row is g-by-g times x-by-x products, so dL/dW (m, n) is never formed.
    """
    if gradient.dim() != 3:
        gradient = gradient.reshape(1, -1, gradient.shape[-1])
        inputs = inputs.reshape(1, -1, inputs.shape[-1])
    overlap = inputs @ inputs.transpose(1, 2)
    return ((overlap @ gradient) * gradient).sum((0, 1), dtype=torch.float64)


def _loss(model: nn.Module, ids: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    kind, seen = type(model).__name__, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    hidden = torch.zeros_like(seen)
    if kind.endswith("ForMaskedLM"):
        hidden = (torch.rand(ids.shape, generator=generator).to(ids.device) < _MASKED_SHARE) & seen
    with _embedded(model, hidden):
        logits = body_call(model, ids, mask).logits
    if kind.endswith("ForMaskedLM"):
        losses = functional.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")
        return (losses * hidden).sum()
    if not hasattr(model, "vocab_size") and "CausalLM" not in kind and "LMHead" not in kind:
        return _sampled_label_loss(logits, seen, generator)
    losses = functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * seen[:, 1:]).sum()


@contextmanager
def _embedded(model: nn.Module, hidden: Tensor) -> Iterator[None]:
    """While active, gradients reach back to the token embeddings, and those of `hidden` tokens are zero.

    Zero takes the place of the mask token, whose id need not be known.
    """

    def begin(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        found = output.detach()
        if hidden.any() and found.shape[:2] == hidden.shape:
            found = torch.where(hidden[..., None], torch.zeros_like(found), found)
        # Not a leaf: some models go on in place.
        return found.requires_grad_(True).clone()

    found = model.get_input_embeddings()  # type: ignore[operator]
    # Encoder-decoders look tokens up in tables of their own, which are tied to it.
    tables = [m for m in model.modules() if m is found or getattr(m, "weight", None) is found.weight]
    with ExitStack() as hooks:
        for table in (m for m in tables if m is found or isinstance(m, nn.Embedding)):
            hooks.enter_context(table.register_forward_hook(begin))
        yield


def _sampled_label_loss(logits: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    flat = logits.reshape(-1, logits.shape[-1]).float()
    labels = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator).to(flat.device)
    losses = functional.cross_entropy(flat, labels[:, 0], reduction="none")
    return (losses * mask.reshape(-1)).sum() if losses.numel() == mask.numel() else losses.sum()


def row_metric(second: Tensor, matrix: Matrix) -> Tensor:
    """The part of a module's gradient statistics that belongs to one matrix: (m, m) or (m,)."""
    part = read_bias(second, matrix.view)
    return part if part.dim() == 1 else read_bias(part.T, matrix.view).T
